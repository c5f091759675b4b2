"""Asks the Hugging Face hub over HTTP, without its library: whether a file is there, and what a config.json holds.

The token of HF_TOKEN, or of the file that `hf auth login` writes, goes to the hub alone and into no message.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hf_config import parse_hf_config
from fullft_cluster.hub_cache import hub_cache, hub_home
from fullft_cluster.yaml_struct import MAX_BYTES

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

TIMEOUT_SECONDS = 3.0
"""Longest wait for a connection, for an answer, and for the whole of a config.json."""
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


class HubRefusalError(Exception):
    """The hub answers, but not with the file. Its text goes on from the model's name."""

    def __init__(self, code: int, reason: str) -> None:
        """Take the HTTP status and the hub's own word for the reason (its header X-Error-Code), if it gave one.

        The words: huggingface_hub, src/huggingface_hub/utils/_http.py, `hf_raise_for_status`.
        """
        self.code = code
        self.no_such_file = reason == "EntryNotFound"
        meanings = {401: "needs a login (HF_TOKEN)", 403: "is not open to you (accept its licence, set HF_TOKEN)"}
        reasons = {
            "RepoNotFound": "does not exist, or is private (HF_TOKEN)",
            "GatedRepo": "is not open to you (accept its licence, set HF_TOKEN)",
        }
        said = meanings.get(code, "does not exist" if code == 404 else f"answers {code}")
        super().__init__(f"on the hub {reasons.get(reason, said)}")


def is_offline(environ: Mapping[str, str]) -> bool:
    """Return whether the user forbids asking the hub.

    https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables#hfhuboffline
    """
    return environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def fetch_config(ref: str, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the config.json of a model on the hub; None for a text that is no hub id.

    Raises UsageError when the hub cannot be reached from here, has no such model, does not open it to this user, or
    gives what is no config.json; each with what to do.
    """
    if not HUB_ID.fullmatch(ref):
        return None
    absent = f"{ref!r} is neither a path nor in the cache {hub_cache(environ)}"
    fix = f"Run `hf download {ref} config.json` where there is internet, or give the path of a config.json."
    if is_offline(environ):
        raise UsageError(Problem("model", f"{absent}, and HF_HUB_OFFLINE is set", fix))
    try:
        return parse_hf_config(_request(f"{ref}/resolve/main/config.json", environ, "GET"), f"{ref}/config.json")
    except HubRefusalError as refusal:
        what = "on the hub has no config.json" if refusal.no_such_file else str(refusal)
        raise UsageError(Problem("model", f"{ref!r} is no path, and {what}", fix)) from None
    except (OSError, ValueError):
        raise UsageError(Problem("model", f"{absent}, and the hub cannot be reached from here", fix)) from None


def ask(path: str, environ: Mapping[str, str]) -> None:
    """Ask the hub for the head of a file.

    Raises HubRefusalError when it has none for us, OSError or ValueError when it is out of reach, and UsageError for
    an address or token that is none.
    """
    _request(path, environ, "HEAD")


def _request(path: str, environ: Mapping[str, str], method: str) -> bytes:
    """Return the body of an answer, up to a byte more than a config.json may have. Raises what `ask` raises."""
    import http.client
    import urllib.error
    import urllib.request

    request = urllib.request.Request(f"{_endpoint(environ)}/{path}", method=method)
    if token := _token(environ):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    until = time.monotonic() + TIMEOUT_SECONDS
    body = b""
    try:
        with _opener().open(request, timeout=TIMEOUT_SECONDS) as answer:
            while method == "GET" and len(body) <= MAX_BYTES and (chunk := answer.read1(1 << 16)):
                body += chunk
                if time.monotonic() > until:  # the timeout of urlopen counts anew with each byte
                    raise TimeoutError("the answer drips")
    except urllib.error.HTTPError as error:
        raise HubRefusalError(error.code, str(error.headers.get("X-Error-Code", ""))) from None
    except http.client.HTTPException:  # an answer that is not HTTP
        raise ValueError("no HTTP") from None
    if len(body) > MAX_BYTES:
        raise UsageError(Problem(path, "is larger than 1 MiB", "Give the config.json of a model."))
    return body


def _opener() -> OpenerDirector:
    """Return what follows the hub's redirections: the token goes along within the hub, and to no other host.

    The hub sends the asker of a gated model's config.json on to another address of its own, which wants the token too.
    """
    import urllib.parse
    import urllib.request

    class WithinTheHub(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, *answer: Any) -> Any:
            new = super().redirect_request(req, *answer)
            if new is not None:
                new.method = req.get_method()
                token = req.unredirected_hdrs.get("Authorization")
                here, there = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(new.full_url)
                if token and (here.scheme, here.netloc) == (there.scheme, there.netloc):
                    new.add_unredirected_header("Authorization", token)
            return new

    return urllib.request.build_opener(WithinTheHub)


def _endpoint(environ: Mapping[str, str]) -> str:
    """Return the hub's address. Raises UsageError for one that is none; it is not shown, as it may hold a password."""
    import urllib.parse

    address = environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        parts = urllib.parse.urlsplit(address)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, an IPv6 address without its bracket
        sound = False
    if not sound or not address.isascii() or any(char <= " " or char == "\x7f" for char in address):
        fix = "Unset it, or write it as https://HOST."
        raise UsageError(Problem("HF_ENDPOINT", "is not the address of a hub", fix))
    return address


def _token(environ: Mapping[str, str]) -> str | None:
    """Return the token as the hub's library finds it: the variable, else the file that `hf auth login` writes.

    Raises UsageError, without showing it, for one that is no token.
    https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables#hftoken
    """
    token, where = environ.get("HF_TOKEN", ""), "HF_TOKEN"
    if not token.strip():
        path = Path(environ.get("HF_TOKEN_PATH") or hub_home(environ) / "token")
        try:
            with path.expanduser().open("rb") as file:
                token, where = file.read(4096).decode("latin-1"), str(path)
        except (OSError, ValueError, RuntimeError):
            return None
    token = token.strip()
    if not all("!" <= char <= "~" for char in token):
        raise UsageError(Problem(where, "holds characters that no token has", "Log in again: `hf auth login`."))
    return token or None
