"""Weights are found before anything is queued, or the error says what to do."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fullft_cluster.errors import UsageError
from fullft_cluster.weights import find_weights


def fill(directory: Path, *names: str) -> Path:
    directory.mkdir(parents=True)
    for name in names:
        (directory / name).write_text("{}")
    return directory


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str | None]]]:
    """A server on loopback that answers as the hub does: known/model, gated/model, and nothing else."""
    seen: list[str | None] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            seen.append(self.headers.get("Authorization"))
            code = {"known": 200, "gated": 403}.get(self.path.split("/")[1], 404)
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
    [(("config.json", "tokenizer.json"), "safetensors"), (("config.json", "model.safetensors"), "tokenizer")],
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
    fill(root / "models--org--name" / "snapshots" / "abc", "config.json", "model.safetensors")
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
    assert seen == ["Bearer sentinel"]
    with pytest.raises(UsageError, match="licence"):
        find_weights("gated/model", None, environ)
    with pytest.raises(UsageError, match="does not exist"):
        find_weights("absent/model", None, environ)


def test_the_hub_out_of_reach(tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:1"}
    with pytest.raises(UsageError, match="cannot be reached from here"):
        find_weights("org/name", None, environ)
