"""Says before anything is queued whether the weights can be found. No hub library: the cache's layout is looked at.

The cache: ``$HF_HUB_CACHE``, else ``$HF_HOME/hub``, else ``~/.cache/huggingface/hub``; a model lies under
``models--ORG--NAME/snapshots/COMMIT`` (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.plan import Frozen

RANDOM = "random"
HUB_TIMEOUT_SECONDS = 3.0
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


class Weights(Frozen, frozen=True):
    """Where the weights are."""

    ref: str
    """``random``, an absolute path, or a hub id."""
    kind: Literal["random", "path", "cache", "hub"]
    note: str = ""


def find_weights(ref: str | None, tokenizer: str | None, environ: Mapping[str, str]) -> Weights:
    """Return where the weights of a run are.

    ``tokenizer`` is the directory of a tokenizer that the model preset brings (then the weights need none).
    Raises UsageError when they cannot be found from here, with what to do.
    """
    if ref is None:
        fix = "Write --weights PATH, --weights ORG/NAME, or --weights random to train from scratch."
        raise UsageError(Problem("weights", "this model names no weights", fix))
    if ref == RANDOM:
        if tokenizer is None:
            fix = "Use a preset that brings one (tiny, small), or give weights that do."
            raise UsageError(Problem("weights", "`random` weights come without a tokenizer", fix))
        return Weights(ref=RANDOM, kind="random")
    path = Path(ref).expanduser()
    if path.exists() or not _HUB_ID.fullmatch(ref):
        return _local(path, tokenizer)
    cache = hub_cache(environ)
    if any(_has_weights(snapshot) for snapshot in _snapshots(cache, ref)):
        return Weights(ref=ref, kind="cache", note=f"in the cache {cache}")
    return _on_hub(ref, cache, environ)


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Return the directory of the hub's cache."""
    home = environ.get("HF_HOME") or str(Path("~/.cache/huggingface").expanduser())
    return Path(environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def _snapshots(cache: Path, ref: str) -> list[Path]:
    return sorted((cache / f"models--{ref.replace('/', '--')}" / "snapshots").glob("*"))


def _has_weights(directory: Path) -> bool:
    complete = any(True for pattern in ("*.safetensors", "*.bin") for _ in directory.glob(pattern))
    return complete and (directory / "config.json").is_file()


def _local(path: Path, tokenizer: str | None) -> Weights:
    if not path.is_dir():
        what = "is a file, not a directory" if path.exists() else "no such directory, and not a hub id"
        raise UsageError(Problem("weights", f"{str(path)!r}: {what}", "Give a directory that from_pretrained loads."))
    lacking = [] if _has_weights(path) else ["config.json with *.safetensors or *.bin"]
    if tokenizer is None and not any((path / n).is_file() for n in ("tokenizer.json", "tokenizer.model")):
        lacking.append("tokenizer.json or tokenizer.model")
    if lacking:
        fix = "Give a directory that from_pretrained loads."
        raise UsageError(Problem("weights", f"{str(path)!r} lacks {' and '.join(lacking)}", fix))
    return Weights(ref=str(path.resolve()), kind="path")


def _on_hub(ref: str, cache: Path, environ: Mapping[str, str]) -> Weights:
    """Ask the hub whether it has the model; offline, or out of reach, that is an error to mend before queueing."""
    mend = (
        f"Run `hf download {ref}` where there is internet (HF_HOME on the shared file system), or give --weights PATH."
    )
    if environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise UsageError(Problem("weights", f"{ref} is not in the cache {cache}, and HF_HUB_OFFLINE is set", mend))
    import urllib.error
    import urllib.request

    url = f"{environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/{ref}/resolve/main/config.json"
    request = urllib.request.Request(url, method="HEAD")
    if token := environ.get("HF_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_SECONDS):
            note = f"not in the cache {cache}: the preparation downloads it, so its node needs internet"
            return Weights(ref=ref, kind="hub", note=note)
    except urllib.error.HTTPError as error:
        meanings = {401: "needs a login (HF_TOKEN)", 403: "is not open to you (accept its licence, set HF_TOKEN)"}
        said = meanings.get(error.code, "does not exist" if error.code == 404 else f"answers {error.code}")
        raise UsageError(Problem("weights", f"{ref} on the hub {said}", mend)) from None
    except (OSError, ValueError):
        what = f"{ref} is not in the cache {cache}, and the hub cannot be reached from here"
        raise UsageError(Problem("weights", what, mend)) from None
