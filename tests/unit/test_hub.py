"""A config.json is fetched from a hub (a real HTTP server on loopback), and each way in which it is not is said."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from fullft_cluster import hub
from fullft_cluster.errors import UsageError
from fullft_cluster.model import load_model

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 300,
}  # fmt: skip
TOKEN = "hf_sentinel"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers by the model's name; `seen` keeps (path, token) of each request."""

    seen: ClassVar[list[tuple[str, str | None]]] = []
    elsewhere = ""

    def do_GET(self) -> None:
        token = self.headers.get("Authorization")
        Hub.seen.append((self.path, token))
        name = self.path.split("/")[2]
        if self.path.startswith("/api/"):
            self.answer(200 if token == f"Bearer {TOKEN}" else 401, json.dumps(CONFIG))
        elif name == "gated":
            self.answer(403 if token else 401, "", reason="GatedRepo")
        elif name == "absent":
            self.answer(401, "", reason="RepoNotFound")
        elif name == "adapter":
            self.answer(404, "", reason="EntryNotFound")
        elif name == "moved":
            self.answer(307, "", to="/api/resolve-cache/models/org/moved/abc/config.json")
        elif name == "away":
            self.answer(302, "", to=Hub.elsewhere + "/other/known/config.json")
        elif name == "loop":
            self.answer(307, "", to=self.path)
        elif name == "drips":
            self.drip()
        else:
            self.answer(*{
                "known": (200, json.dumps(CONFIG)),
                "bert": (200, json.dumps({**CONFIG, "model_type": "bert"})),
                "html": (200, "<html>"),
                "list": (200, "[1]"),
                "huge": (200, " " * (2 << 20)),
                "broken": (500, ""),
            }[name])  # fmt: skip

    def answer(self, code: int, body: str, *, to: str = "", reason: str = "") -> None:
        self.send_response(code)
        if to:
            self.send_header("Location", to)
        if reason:
            self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.02)
        except OSError:  # the client has left
            pass

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{server.server_address[1]}" for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def environ(addresses: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    Hub.seen, Hub.elsewhere = [], addresses[1]
    given = {"HF_ENDPOINT": addresses[0], "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return given


def test_a_model_on_the_hub(environ: dict[str, str]):
    spec = load_model("org/known", hub.fetch_config)
    assert (spec.name, spec.weights, spec.hidden_size) == ("known", "org/known", 64)
    assert Hub.seen == [("/org/known/resolve/main/config.json", f"Bearer {TOKEN}")]


def test_without_fetching_nobody_is_asked(environ: dict[str, str]):
    with pytest.raises(UsageError, match="neither a path nor in the local Hugging Face cache"):
        load_model("org/known")
    assert Hub.seen == []


@pytest.mark.parametrize(
    "ref", ["7b", "absent/config.json", "nonsense", "a/b/c", "../a", "./org/known", "org/na me", "-x/y"]
)
def test_what_is_no_hub_id_asks_nobody(environ: dict[str, str], ref: str):
    if ref == "7b":
        assert load_model(ref, hub.fetch_config).name == "7b"
    else:
        with pytest.raises(UsageError, match="model"):
            load_model(ref, hub.fetch_config)
    assert Hub.seen == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gated", "'org/gated' is no path, and on the hub is not open to you (accept its licence, set HF_TOKEN)"),
        ("absent", "'org/absent' is no path, and on the hub does not exist, or is private (HF_TOKEN)"),
        ("adapter", "'org/adapter' is no path, and on the hub has no config.json"),
        ("broken", "'org/broken' is no path, and on the hub answers 500"),
        ("loop", "'org/loop' is no path, and on the hub answers 307"),
        ("html", "org/html/config.json:1: is not JSON"),
        ("list", "org/list/config.json: is not a JSON object"),
        ("huge", "org/huge/resolve/main/config.json: is larger than 1 MiB"),
        ("bert", "org/bert: is of an encoder (bert)"),
    ],
)
def test_what_the_hub_has_not(environ: dict[str, str], name: str, said: str):
    with pytest.raises(UsageError) as refused:
        load_model(f"org/{name}", hub.fetch_config)
    assert said in str(refused.value)
    assert TOKEN not in str(refused.value)


def test_a_gated_model_without_a_token(environ: dict[str, str]):
    with pytest.raises(UsageError, match="is not open to you"):
        hub.fetch_config("org/gated", {**environ, "HF_TOKEN": ""})
    assert Hub.seen[-1][1] is None


def test_the_token_goes_along_within_the_hub_and_to_no_other_host(environ: dict[str, str]):
    assert hub.fetch_config("org/moved", environ) == CONFIG
    assert [token for _, token in Hub.seen] == [f"Bearer {TOKEN}"] * 2
    assert hub.fetch_config("org/away", environ) == CONFIG
    assert Hub.seen[-1] == ("/other/known/config.json", None)


def test_an_answer_that_drips(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.3)
    with pytest.raises(UsageError, match="cannot be reached from here"):
        hub.fetch_config("org/drips", environ)


def test_nobody_listens(environ: dict[str, str]):
    with pytest.raises(UsageError, match=r"the hub cannot be reached from here\. Run `hf download org/known config\.j"):
        hub.fetch_config("org/known", {**environ, "HF_ENDPOINT": "http://127.0.0.1:1"})


@pytest.mark.parametrize("value", ["1", "true", "YES"])
def test_offline(environ: dict[str, str], value: str):
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        hub.fetch_config("org/known", {**environ, "HF_HUB_OFFLINE": value})
    assert Hub.seen == []
