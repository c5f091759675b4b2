"""Weights are found before anything is queued, or the error says what to do."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fullft_cluster.errors import UsageError
from fullft_cluster.model import load_model
from fullft_cluster.weights import check_same_model, check_tokenizer, find_weights

WHOLE = ("config.json", "model.safetensors", "tokenizer.json")


def fill(directory: Path, *names: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_text("{}")
    return directory


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str | None]]]:
    """A server on loopback that answers as the hub does: known/model, gated/model, slow/model (which has no fast
    tokenizer), and nothing else."""
    seen: list[str | None] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            seen.append(self.headers.get("Authorization"))
            code = {"known": 200, "gated": 403, "slow": 200}.get(self.path.split("/")[1], 404)
            if self.path.startswith("/slow/") and self.path.endswith("tokenizer.json"):
                code = 404
            self.send_response(code)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", seen
    server.shutdown()
    server.server_close()


def test_random_needs_a_tokenizer_from_the_preset() -> None:
    assert find_weights("random", "/tok", {}).kind == "random"
    with pytest.raises(UsageError, match="tokenizer"):
        find_weights("random", None, {})


def test_no_weights_named() -> None:
    with pytest.raises(UsageError, match="--weights"):
        find_weights(None, None, {})


def test_a_directory(tmp_path: Path) -> None:
    path = fill(tmp_path / "w", "config.json", "model.safetensors", "tokenizer.json")
    found = find_weights(str(path), None, {})
    assert (found.kind, found.ref) == ("path", str(path))


@pytest.mark.parametrize(
    ("names", "lacks"),
    [
        (("config.json", "tokenizer.json"), "safetensors"),
        (("config.json", "model.safetensors"), r"tokenizer\.json"),
        (("config.json", "model.safetensors", "tokenizer.model"), r"lacks tokenizer\.json.*save_pretrained"),
        (("model.safetensors", "tokenizer.json"), r"lacks config\.json"),
        (("config.json", "tokenizer.json", "optimizer.bin"), "safetensors"),
    ],
)
def test_a_directory_that_lacks_something(tmp_path: Path, names: tuple[str, ...], lacks: str) -> None:
    with pytest.raises(UsageError, match=lacks):
        find_weights(str(fill(tmp_path / "w", *names)), None, {})


def test_a_missing_path_and_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory"):
        find_weights(str(tmp_path / "absent"), None, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        find_weights(str(tmp_path / "file"), None, {})


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_the_cache_is_honoured(tmp_path: Path, variable: str) -> None:
    root = tmp_path / "hub" if variable == "HF_HOME" else tmp_path
    fill(root / "models--org--name" / "snapshots" / "abc", *WHOLE)
    assert find_weights("org/name", None, {variable: str(tmp_path), "HF_HUB_OFFLINE": "1"}).kind == "cache"


def test_offline_and_not_cached(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set") as refused:
        find_weights("org/name", None, {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"})
    assert "hf download org/name" in str(refused.value)


def test_the_hub_is_asked(tmp_path: Path, hub: tuple[str, list[str | None]]) -> None:
    address, seen = hub
    environ = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": address, "HF_TOKEN": "sentinel"}
    found = find_weights("known/model", None, environ)
    assert found.kind == "hub"
    assert "internet" in found.note
    assert "sentinel" not in found.note
    assert set(seen) == {"Bearer sentinel"}
    with pytest.raises(UsageError, match="licence"):
        find_weights("gated/model", None, environ)
    with pytest.raises(UsageError, match="does not exist"):
        find_weights("absent/model", None, environ)


def test_the_hub_out_of_reach(tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:1"}
    with pytest.raises(UsageError, match="cannot be reached from here"):
        find_weights("org/name", None, environ)


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_needs_each_of_its_shards(tmp_path: Path, index: str) -> None:
    path = fill(tmp_path / "w", "config.json", "tokenizer.json", "1.part", "2.part")
    (path / index).write_text(json.dumps({"weight_map": {"a": "1.part", "b": "2.part", "c": "2.part"}}))
    assert find_weights(str(path), None, {}).kind == "path"
    (path / "1.part").write_text("")
    with pytest.raises(UsageError, match=r"lacks 1\.part\."):
        find_weights(str(path), None, {})
    (path / "1.part").unlink()
    (path / "2.part").unlink()
    (path / "2.part").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"lacks 1\.part, 2\.part\."):
        find_weights(str(path), None, {})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000, "\0"])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    path = fill(tmp_path / "w", "config.json", "tokenizer.json", "part.safetensors")
    (path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UsageError, match="it lists no shards"):
        find_weights(str(path), None, {})


def test_empty_weights(tmp_path: Path) -> None:
    path = fill(tmp_path / "w", *WHOLE)
    (path / "model.safetensors").write_text("")
    with pytest.raises(UsageError, match="it is empty"):
        find_weights(str(path), None, {})


OFFLINE = {"HF_HUB_OFFLINE": "1"}


def test_the_cache_has_the_snapshot_that_main_names(tmp_path: Path) -> None:
    """Links as the hub's library makes them; a snapshot that was downloaded in part is none."""
    folder = tmp_path / "models--org--name"
    environ = {"HF_HUB_CACHE": str(tmp_path), **OFFLINE}
    fill(folder / "snapshots" / "old", *WHOLE)
    assert find_weights("org/name", None, environ).directory == str(folder / "snapshots" / "old")
    fill(folder / "blobs", *WHOLE)
    new = fill(folder / "snapshots" / "new")
    for name in WHOLE:
        (new / name).symlink_to(f"../../blobs/{name}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("new")
    assert find_weights("org/name", None, environ).directory == str(new)
    (folder / "blobs" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"not whole in the cache .*lacks model\.safetensors"):
        find_weights("org/name", None, environ)
    (folder / "refs" / "main").write_text("gone")
    with pytest.raises(UsageError, match="lacks the snapshot"):
        find_weights("org/name", None, environ)


def test_a_dry_look_asks_nobody(tmp_path: Path, hub: tuple[str, list[str | None]]) -> None:
    address, seen = hub
    found = find_weights("absent/model", None, {"HF_HOME": str(tmp_path), "HF_ENDPOINT": address}, ask_hub=False)
    assert found.kind == "hub"
    assert "not in the cache" in found.note and "a submit asks the hub" in found.note
    assert seen == []


def test_a_hub_model_without_a_fast_tokenizer(tmp_path: Path, hub: tuple[str, list[str | None]]) -> None:
    environ = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub[0]}
    with pytest.raises(UsageError, match=r"has no tokenizer\.json.*save_pretrained"):
        find_weights("slow/model", None, environ)
    assert find_weights("slow/model", "/a/tokenizer", environ).kind == "hub"


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_TOKEN_PATH"])
def test_the_token_that_a_login_wrote(tmp_path: Path, hub: tuple[str, list[str | None]], variable: str) -> None:
    (tmp_path / "token").write_text("sentinel\n")
    where = {"HF_HOME": str(tmp_path / "token" if variable == "HF_TOKEN_PATH" else tmp_path)}
    environ = {"HF_ENDPOINT": hub[0], "HF_HUB_CACHE": str(tmp_path), **where}
    if variable == "HF_TOKEN_PATH":
        environ |= {"HF_TOKEN_PATH": str(tmp_path / "token"), "HF_HOME": str(tmp_path / "none")}
    find_weights("known/model", None, environ)
    assert set(hub[1]) == {"Bearer sentinel"}
    find_weights("known/model", None, {**environ, "HF_TOKEN": "nearer"})
    assert set(hub[1]) == {"Bearer sentinel", "Bearer nearer"}


@pytest.mark.parametrize("token", ["sent\ninel", "sentinel\u00e9", "sentinel\u4e00"])
def test_a_token_that_is_none_is_not_shown(tmp_path: Path, hub: tuple[str, list[str | None]], token: str) -> None:
    with pytest.raises(UsageError, match="HF_TOKEN: holds characters") as refused:
        find_weights("known/model", None, {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub[0], "HF_TOKEN": token})
    assert "inel" not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    ["", "huggingface.co", "http://bad host:99999x/", "http://host:99999", "http://", "http://[::1", "ftp://host",
     "http://h\u00f6st", "http://user:sentinel@h ost"],
)  # fmt: skip
def test_an_endpoint_that_is_none(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match="HF_ENDPOINT: is not the address of a hub") as refused:
        find_weights("org/name", None, {"HF_HOME": str(tmp_path), "HF_ENDPOINT": address})
    assert "sentinel" not in str(refused.value)


def test_weights_of_another_model_are_told_apart(tmp_path: Path) -> None:
    model = load_model("7b")
    path = fill(tmp_path / "w", *WHOLE)
    (path / "config.json").write_text(json.dumps(model.hf_config))
    weights = find_weights(str(path), None, {})
    check_same_model(weights, model)
    (path / "config.json").write_text(json.dumps({**model.hf_config, "hidden_size": 64, "vocab_size": 9}))
    with pytest.raises(UsageError, match=r"hidden_size is 64, but 7b has 4096; .*vocab_size is 9, but 7b has 32000"):
        check_same_model(weights, model)


def test_random_weights_say_which_models_have_them() -> None:
    with pytest.raises(UsageError, match="only the presets tiny and small"):
        find_weights("random", None, {})


@pytest.mark.parametrize("ref", ["~no-such-user-here/w", "/" + "x" * 5000, "a\0b"])
def test_paths_that_cannot_be_looked_at(ref: str) -> None:
    with pytest.raises(UsageError, match="weights"):
        find_weights(ref, None, {})


def test_a_tokenizer_beside_the_weights(tmp_path: Path) -> None:
    offline = {"HF_HOME": str(tmp_path), **OFFLINE}
    assert check_tokenizer(None, offline) == ""
    assert check_tokenizer(str(fill(tmp_path / "t", "tokenizer.json")), offline) == ""
    with pytest.raises(UsageError, match=r"has no tokenizer\.json.*save_pretrained"):
        check_tokenizer(str(fill(tmp_path / "w", "tokenizer.model")), offline)
    with pytest.raises(UsageError, match="no such directory, and not a hub id"):
        check_tokenizer(str(tmp_path / "absent"), offline)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        check_tokenizer("org/name", offline)
    assert "the preparation downloads it" in check_tokenizer("org/name", {"HF_HOME": str(tmp_path)})
    fill(tmp_path / "hub" / "models--org--name" / "snapshots" / "abc", "tokenizer.json")
    assert check_tokenizer("org/name", offline) == ""
    assert find_weights("random", "org/name", offline).kind == "random"
