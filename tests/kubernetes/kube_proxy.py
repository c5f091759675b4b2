"""A proxy before the API server that breaks what a test wants broken: refusals, answers that get lost, a pause."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qs, urlsplit

HOST = "127.0.0.1"


class Question(NamedTuple):
    """A request that came by."""

    method: str
    path: str
    query: dict[str, str]
    accept: str
    body: bytes

    @property
    def writes(self) -> bool:
        """Whether it changes something."""
        return self.method != "GET" and "dryRun" not in self.query and "/authorization" not in self.path


Verdict = Literal["lose", "drop"] | tuple[int, dict[str, Any]] | None
"""`lose`: carried out, and the answer is lost. `drop`: not even that. A status and a body: instead of the server's."""
Rule = Callable[[Question], Verdict]


def refusal(code: int, message: str, reason: str = "") -> tuple[int, dict[str, Any]]:
    """What the API server answers that refuses."""
    return code, {"kind": "Status", "code": code, "message": message, "reason": reason}


class Proxy:
    """Passes on what ``rule`` does not break. `kubeconfig` leads through it."""

    def __init__(self, kubeconfig: Path, directory: Path, rule: Rule = lambda question: None) -> None:
        self.rule, self.questions = rule, list[Question]()
        config = json.loads(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        address = urlsplit(cluster["server"])
        self.upstream = (str(address.hostname), int(address.port or 443))
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self.context = ssl.create_default_context(cadata=authority)
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _any(self) -> None:
                proxy._handle(self)

            do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _any

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer((HOST, 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that has gone
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        cluster.clear()
        cluster["server"] = f"http://{HOST}:{self.http.server_port}"
        self.kubeconfig = directory / f"proxy-{self.http.server_port}.kubeconfig"
        self.kubeconfig.write_text(json.dumps(config))

    def close(self) -> None:
        """End it."""
        self.http.shutdown()
        self.http.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        question = Question(handler.command, url.path, query, handler.headers.get("Accept", ""), body)
        with self._lock:
            self.questions.append(question)
        verdict = self.rule(question)
        if isinstance(verdict, tuple):
            _send(handler, verdict[0], json.dumps(verdict[1]).encode())
        elif verdict == "drop":
            _reset(handler)
        else:
            self._pass_on(handler, body, lose=verdict == "lose")

    def _pass_on(self, handler: BaseHTTPRequestHandler, body: bytes, *, lose: bool) -> None:
        names = ("Authorization", "Accept", "Content-Type")
        headers = {name: handler.headers[name] for name in names if handler.headers[name]}
        upstream = http.client.HTTPSConnection(*self.upstream, timeout=100, context=self.context)
        try:
            upstream.request(handler.command, handler.path, body or None, headers)
            answer = upstream.getresponse()
            if lose:
                answer.read()
                _reset(handler)
            elif answer.getheader("Content-Length"):
                _send(handler, answer.status, answer.read())
            else:
                _stream(handler, answer)
        except (OSError, http.client.HTTPException):
            _reset(handler)
        finally:
            upstream.close()


def _send(handler: BaseHTTPRequestHandler, status: int, data: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def _stream(handler: BaseHTTPRequestHandler, answer: http.client.HTTPResponse) -> None:
    handler.send_response(answer.status)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while data := answer.read1(65536):
        handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")


def _reset(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    with contextlib.suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)
