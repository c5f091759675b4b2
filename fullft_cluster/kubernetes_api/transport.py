"""Requests to one API server over the official client's connections: repeated while it is away, errors with words."""

from __future__ import annotations

import json
import re
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fullft_cluster import __version__
from fullft_cluster.errors import Problem
from fullft_cluster.kubernetes_api.backoff import Backoff
from fullft_cluster.kubernetes_api.failures import (
    ApiError,
    Forbidden,
    GroupNotFound,
    Invalid,
    Unauthorized,
    Unreachable,
    failure,
)

PATIENCE_SECONDS = 60.0
"""How long a request is repeated in all: an API server is back from a restart or an update within this. Default."""

FIRST_PATIENCE_SECONDS = 30.0
"""The same while the server has never answered: it may be the wrong address."""

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
SETTLE_SECONDS = 10.0
"""How long a server that is back may deny what it allows: it answers before it has read its roles, users and CRDs."""

AGAIN = frozenset({429, 500, 502, 503, 504})
"""The statuses that may be others a moment later."""

Query = Mapping[str, str | int | bool | None]


def to_stderr(text: str) -> None:
    """Print one line of prose."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Request:
    """One request."""

    method: str
    path: str
    query: Query | None = None
    body: Any = None
    content_type: str | None = None
    accept: str = "application/json"
    again: bool = True
    """Whether it may be carried out twice: what is not, is sent again only when it surely was not carried out."""


class Transport:
    """One API server, and how it is asked. Safe to share between threads.

    ``client``: the official client's ApiClient. ``report`` is told when the server is away, and when it is back.
    """

    def __init__(
        self, client: Any, *, patience_seconds: float = PATIENCE_SECONDS, report: Callable[[str], None] = to_stderr
    ) -> None:
        self._client = client
        self.host = str(client.configuration.host).rstrip("/")
        self.patience_seconds = patience_seconds
        self.report = report
        self.sleep: Callable[[float], None] = time.sleep
        self._answered = False
        self._warned: set[str] = set()
        self._away = threading.Event()
        self._was_lost = False
        self._settled_at = 0.0

    def request(
        self, method: str, path: str, query: Query | None = None, body: Any = None, content_type: str | None = None
    ) -> Any:
        """Return the JSON of an answer. Raises ApiError. It may be sent more than once: see `open`."""
        return self.ask(Request(method, path, query, body, content_type))

    def ask(self, request: Request) -> Any:
        """Return the JSON of an answer. Raises ApiError."""
        answer = self.open(request)
        try:
            return json.loads(answer.data or b"null")
        except ValueError:
            what = f"{self.host}{request.path} answered with something else than JSON"
            raise ApiError(Problem("kubernetes", what, "Is that an API server, and not a proxy's page?")) from None

    def open(self, request: Request, stream_seconds: float | None = None) -> Any:
        """Return the response to a request, urllib3's. Raises ApiError for any that is no success.

        A lost connection, 429 and 5xx are tried again for about ``patience_seconds``. With ``stream_seconds`` the body
        is left to be read; each piece of it may be so long in coming.
        """
        import urllib3.exceptions

        patience = Backoff(self._patience(), sleep=self.sleep)
        while True:
            try:
                answer = self._send(request, stream_seconds)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                fault: ApiError = self.unreachable(error)
                self._was_lost = True
                if _hopeless(error, answered=self._answered) or (_was_sent(error) and not request.again):
                    raise fault from None
                self._pause(patience, fault, 0.0)
                continue
            self._answered = True
            if self._was_lost:
                self._was_lost, self._settled_at = False, time.monotonic() + SETTLE_SECONDS
            if 200 <= answer.status < 300:
                self._is_back()
                self._warn(answer.headers.get("Warning", ""))
                return answer
            fault = failure(answer.status, _status(answer.data), request.method, request.path, self.host)
            denied = isinstance(fault, Unauthorized | Forbidden | GroupNotFound) and self.is_settling
            again = denied or answer.status == 429 or (answer.status in AGAIN and request.again)
            if isinstance(fault, Invalid) or not again:
                self._is_back()
                raise fault
            self._pause(patience, fault, _retry_after(answer.headers))

    def _send(self, request: Request, stream_seconds: float | None) -> Any:
        import urllib3

        headers = {"Accept": request.accept, "User-Agent": f"fullft-cluster/{__version__}"}
        for auth in self._client.configuration.auth_settings().values():  # renews a token that has run out
            if auth["value"]:
                headers["Authorization"] = auth["value"]
        if request.body is not None:
            headers["Content-Type"] = request.content_type or "application/json"
        given = {key: _text(value) for key, value in (request.query or {}).items() if value is not None}
        return self._client.rest_client.pool_manager.request(
            request.method,
            f"{self.host}{request.path}" + (f"?{urlencode(given)}" if given else ""),
            body=None if request.body is None else json.dumps(request.body).encode(),
            headers=headers,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=stream_seconds or READ_SECONDS),
            retries=False,
            redirect=False,
            preload_content=stream_seconds is None,
        )

    @property
    def is_settling(self) -> bool:
        """Return whether the server came back a moment ago, so that a denial of it may not be its last word."""
        return time.monotonic() < self._settled_at

    def _patience(self) -> float:
        return self.patience_seconds if self._answered else min(self.patience_seconds, FIRST_PATIENCE_SECONDS)

    def _pause(self, patience: Backoff, problem: ApiError, at_least: float) -> None:
        """Wait before another try, or raise the problem when the time for that is over."""
        if not self._away.is_set() and patience.tries:  # one hiccup is not worth a word
            self._away.set()
            self.report(f"kubernetes: {problem.problems[0].what}; trying again for {self._patience():.0f} s")
        if not patience.pause(at_least):
            raise problem

    def _warn(self, header: str) -> None:
        """Pass on what the server warns of (``299 - "text"``), each once, as kubectl does."""
        for text in re.findall(r'299 \S+ "((?:[^"\\]|\\.)*)"', header):
            if text not in self._warned:
                self._warned.add(text)
                self.report(f"kubernetes: warning: {text}")

    def _is_back(self) -> None:
        if self._away.is_set():
            self._away.clear()
            self.report(f"kubernetes: {self.host} answers again")

    def unreachable(self, error: BaseException) -> Unreachable:
        """Return the error to raise for a connection that cannot be made, or broke off."""
        words = cause(error)
        if "CERTIFICATE_VERIFY_FAILED" in words or "certificate verify failed" in words:
            what = f"{self.host}: its certificate is not the one that the kubeconfig trusts: {words}"
            return Unreachable(Problem("kubernetes", what, "Is the kubeconfig of this very cluster? Fetch it anew."))
        fix = "Is the kubeconfig's server right and reachable from here? Try `kubectl get --raw /readyz`."
        return Unreachable(Problem("kubernetes", f"{self.host} does not answer: {words}", fix))


def cause(error: BaseException) -> str:
    """Return an error's own words without the client's objects around them."""
    inner = next((part for part in error.args if isinstance(part, BaseException)), None)
    text = str(getattr(error, "reason", None) or inner or error) or type(error).__name__
    return re.sub(r"^<[^>]*>: |^\w*\(.*?\): ", "", text)


def _was_sent(error: BaseException) -> bool:
    """Return whether the request may have reached the server."""
    import urllib3.exceptions

    return not isinstance(error, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)


def _hopeless(error: BaseException, *, answered: bool) -> bool:
    """Return whether another try ends alike: a certificate that is not trusted, a name that nobody knows."""
    import urllib3.exceptions

    if isinstance(error, ssl.SSLCertVerificationError | FileNotFoundError | PermissionError):
        return True
    if isinstance(error, urllib3.exceptions.SSLError):
        return "verif" in str(error).lower()
    if isinstance(error, urllib3.exceptions.LocationValueError):
        return True
    unknown = isinstance(error, urllib3.exceptions.NameResolutionError)
    return unknown and not answered and "Temporary failure" not in str(error)


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _status(data: bytes) -> Mapping[str, Any]:
    """Return the Status object of an answer; empty where it is none."""
    try:
        value = json.loads(data)
    except ValueError:
        text = data.decode(errors="replace").strip() if data else ""
        return {"message": text[:300]} if text and not text.startswith("<") else {}
    return value if isinstance(value, dict) else {}


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds of a header Retry-After; 0 without one (a date is as good as none here)."""
    try:
        return max(0.0, float(headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0
