"""The name of a cache: a digest of all that decides what is in it."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from fullft_cluster.checkpoints import file_sha256
from fullft_cluster.config import DataConfig
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.row_sources import RowSource, files_of, sources_of
from fullft_cluster.train.data import VERSION
from fullft_cluster.train.encoder import EncoderSettings

THREADS = 4
"""Files that are hashed at once: hashlib lets other threads run, and a file system serves several better than one."""

_PATHS = ("train", "validation", "sources", "chat_template", "cache_dir")
"""Of data: where things lie. What lies there counts, not its name."""


def cache_key(data: DataConfig, encoder: EncoderSettings, *, seq_len: int, seed: int) -> str:
    """Return the name of the cache of this data with this tokenizer and these settings. Reads every file once.

    Raises UsageError for a file that cannot be read.
    """
    settings = {key: value for key, value in msgspec.to_builtins(data).items() if key not in _PATHS}
    sources = sources_of(data)
    parts = {
        "version": VERSION,
        "train": [_source(source) for source in sources],
        "validation": [_source(s) for s in sources_of(data, validation=True)],
        "data": settings,
        "encoder": msgspec.structs.replace(encoder, chat_template_name=""),
        "seq_len": seq_len,
        # Only there does it choose rows.
        "seed": seed if any(source.weight != int(source.weight) for source in sources) else None,
    }
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:32]


def _source(source: RowSource) -> dict[str, Any]:
    """Return what of a source decides its rows."""
    settings = {"format": source.format, "fields": source.fields, "weight": source.weight}
    if source.kind == "hub":
        from fullft_cluster.train.sources import hub_fingerprint

        return {**settings, "hub": hub_fingerprint(source)}
    files = files_of(source)
    root = source.local
    with ThreadPoolExecutor(THREADS) as pool:
        digests = list(pool.map(_digest, files))
    names = [path.relative_to(root).as_posix() if path != root else "" for path in files]
    return {**settings, "files": list(zip(names, digests, strict=True))}


def _digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise UsageError(Problem(str(path), f"cannot be read ({error.strerror})", "Check the path.")) from None
