"""The port of a node at which the API server asks for the logs of its containers (`kubectl logs`)."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

SEES_NEW_LINES = 0.1  # seconds


class Log(NamedTuple):
    """The log of one life of a container, and whether it is still written."""

    path: Path
    written: Callable[[], bool]


Find = Callable[[str, str, str, bool], Log | None]  # namespace, pod, container, previous


class LogServer:
    """HTTPS at one node's address, with a certificate that nobody checks, as kubelets have it."""

    def __init__(self, address: str, certificate: Path, find: Find) -> None:
        class Handler(_Handler):
            log = staticmethod(find)

        self._server = _Server((address, 0), Handler)
        self._server.context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, object]:
        connection, peer = super().get_request()
        # The handshake is left to the handler's thread: a slow client holds up nobody else.
        return self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), peer


class _Handler(http.server.BaseHTTPRequestHandler):
    log: Find

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        asked = {key: values[0] for key, values in urllib.parse.parse_qs(url.query).items()}
        _, what, *names = url.path.split("/")
        found = None
        if what == "containerLogs" and len(names) == 3:
            found = self.log(names[0], names[1], names[2], asked.get("previous") == "true")
        if found is None or not found.path.exists():
            self.send_error(404, "no such log")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        for line in lines(found, asked):
            self.wfile.write(line)
            self.wfile.flush()


def lines(log: Log, asked: dict[str, str]) -> Iterator[bytes]:
    """Yield the lines that a request's query asks for (PodLogOptions)."""
    with log.path.open("rb") as file:
        kept = file.readlines()
        if "tailLines" in asked:
            kept = kept[len(kept) - int(asked["tailLines"]) :] if int(asked["tailLines"]) < len(kept) else kept
        since = _since(asked)
        yield from (_shown(line, asked) for line in kept if not since or line >= since)
        while asked.get("follow") == "true":
            written = log.written()  # before reading: what is written between the two is read in the next round
            if more := file.readline():
                yield _shown(more, asked)
            elif written:
                time.sleep(SEES_NEW_LINES)
            else:
                return


def _since(asked: dict[str, str]) -> bytes | None:
    if "sinceSeconds" in asked:
        begin = datetime.now(UTC) - timedelta(seconds=int(asked["sinceSeconds"]))
        return begin.strftime("%Y-%m-%dT%H:%M:%S").encode()
    return asked["sinceTime"].rstrip("Z").encode() if "sinceTime" in asked else None


def _shown(line: bytes, asked: dict[str, str]) -> bytes:
    return line if asked.get("timestamps") == "true" else line.partition(b" ")[2]
