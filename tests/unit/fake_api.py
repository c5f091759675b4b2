"""An API server of a few lines on a real socket: it gives the answers that a test lays down, keeps the questions."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from fullft_cluster.kubernetes_api import Api, connect


class Asked(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


class Answer(NamedTuple):
    status: int = 200
    body: Any = None
    headers: tuple[tuple[str, str], ...] = ()


class Lost(NamedTuple):
    """The connection is reset, after the request was read, and before or after so much of an answer."""

    after: bytes = b""


class Stream(NamedTuple):
    """Lines of a watch or a log; then the end, clean or by a reset."""

    lines: tuple[Any, ...]
    broken: bool = False


Rule = Answer | Lost | Stream | Callable[[Asked], "Answer | Lost | Stream"]


def refusal(code: int, message: str, reason: str = "", **details: Any) -> Answer:
    """What an API server answers that refuses."""
    body = {"kind": "Status", "status": "Failure", "code": code, "message": message, "reason": reason}
    return Answer(code, {**body, "details": details} if details else body)


class FakeApi:
    """Answers in the order in which they were laid down; the last one again and again."""

    def __init__(self, directory: Path) -> None:
        self.asked: list[Asked] = []
        self.answers: list[Rule] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _any(self) -> None:
                fake.handle(self)

            do_GET = do_POST = do_PATCH = do_DELETE = _any

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that has gone
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.kubeconfig = directory / "kubeconfig"
        self.kubeconfig.write_text(json.dumps(kubeconfig(self.address)))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length)) if length else None
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        asked = Asked(handler.command, url.path, query, body, dict(handler.headers))
        self.asked.append(asked)
        rule = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        answer = rule(asked) if callable(rule) else rule
        if isinstance(answer, Lost):
            handler.wfile.write(answer.after)
            reset(handler)
        elif isinstance(answer, Stream):
            _stream(handler, answer)
        else:
            _answer(handler, answer)


def _answer(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
    handler.send_response(answer.status)
    for name, value in answer.headers:
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def _stream(handler: BaseHTTPRequestHandler, stream: Stream) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for line in stream.lines:
        data = (line if isinstance(line, str) else json.dumps(line)).encode() + b"\n"
        handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    if stream.broken:
        handler.wfile.flush()
        reset(handler)
    else:
        handler.wfile.write(b"0\r\n\r\n")


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Break the connection off as a server does that is killed."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def kubeconfig(address: str, **context: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {"token": "secret-token"}}],
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u", **context}},
            {"name": "there", "context": {"cluster": "c", "user": "u", "namespace": "elsewhere"}},
        ],
    }


def api_of(fake: FakeApi, monkeypatch: Any, said: list[str] | None = None, patience: float = 20.0) -> Api:
    """The project's client of it, whose pauses take no time."""
    monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig))
    api = connect(patience_seconds=patience, report=(said if said is not None else []).append)
    api.sleep = lambda seconds: None
    return api
