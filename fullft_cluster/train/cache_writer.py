"""Write the files of a cache: a directory that is filled, marked complete, and only then renamed to its name."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import msgspec
import numpy as np

from fullft_cluster.rundir import fsync_path, write_atomic
from fullft_cluster.train import data
from fullft_cluster.train.chunks import Index
from fullft_cluster.train.packing import Bools, Documents, batches, pack


def write_cache(directory: Path, parts: Iterable[Documents], meta: data.CacheMeta, *, packing: bool) -> data.CacheMeta:
    """Pack documents of at most seq_len tokens into a directory, its mark too; return the meta with its counts.

    Nothing is kept in memory but a batch of documents and the offsets.
    """
    directory.mkdir(parents=True, exist_ok=True)
    blocks: list[data.Ints] = []
    documents: list[data.Ints] = []
    valid: list[data.Ints] = []
    with (directory / data.TOKENS).open("wb") as tokens, (directory / data.SUPERVISED).open("wb") as bits:
        rest = np.zeros(0, dtype=bool)
        for batch in batches(parts):
            packed = pack(batch, meta.seq_len, packing=packing)
            tokens.write(np.ascontiguousarray(packed.tokens, dtype=meta.dtype).tobytes())
            rest = _write_bits(bits, np.concatenate([rest, packed.supervised]))
            blocks.append(packed.blocks)
            documents.append(packed.documents)
            valid.append(packed.labels)
        bits.write(np.packbits(rest).tobytes())
        for file in (tokens, bits):
            file.flush()
            os.fsync(file.fileno())
    ends = _edges(documents)
    with (directory / data.STARTS).open("wb") as file:
        np.save(file, ends[:-1])
        file.flush()
        os.fsync(file.fileno())
    return _finish(directory, blocks, valid, msgspec.structs.replace(meta, documents=len(ends) - 1))


def write_index(
    directory: Path, sizes: Sequence[tuple[data.Ints, data.Ints]], index: Index, meta: data.CacheMeta
) -> data.CacheMeta:
    """Write a cache without tokens: tokens and labels of the blocks of each chunk, and where the chunks are."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / data.INDEX, msgspec.json.encode(index))
    return _finish(directory, [blocks for blocks, _ in sizes], [labels for _, labels in sizes], meta)


def _finish(directory: Path, blocks: list[data.Ints], valid: list[data.Ints], meta: data.CacheMeta) -> data.CacheMeta:
    """Write what is known of the blocks, the meta with its counts, and the mark; return the meta."""
    edges, labels = _edges(blocks), np.concatenate([np.zeros(0, dtype=np.int64), *valid])
    for name, values in ((data.BLOCKS, edges), (data.VALID, labels)):
        with (directory / name).open("wb") as file:
            np.save(file, values)
            file.flush()
            os.fsync(file.fileno())
    meta = msgspec.structs.replace(meta, tokens=int(edges[-1]), blocks=len(edges) - 1, labels=int(labels.sum()))
    write_atomic(directory / data.META, msgspec.json.format(msgspec.json.encode(meta), indent=2) + b"\n")
    write_atomic(directory / data.COMPLETE, b"")
    return meta


def _write_bits(file: IO[bytes], supervised: Bools) -> Bools:
    """Write eight tokens' bits a byte; return those that do not fill one, for the next call."""
    whole = len(supervised) // 8 * 8
    file.write(np.packbits(supervised[:whole]).tobytes())
    return supervised[whole:]


def _edges(lengths: list[data.Ints]) -> data.Ints:
    """Return where each of some lengths begins, and the last ends."""
    edges: data.Ints = np.cumsum(np.concatenate([np.zeros(1, dtype=np.int64), *lengths]))
    return edges


def scratch(final: Path) -> Path:
    """Return a name beside a cache for one who builds it: its own, so that two do not disturb each other."""
    # In pods every process has the id 1, so it would not do.
    return final.with_name(f".building-{final.name}-{uuid.uuid4().hex[:12]}")


def publish(work: Path, final: Path) -> None:
    """Rename a built cache to its name, unless another preparation was faster; clear up what was left of others."""
    while not data.is_complete(final):
        # Looked at twice: another preparation may just have published it. Damaged from outside, it can be made again.
        if final.exists() and not data.is_complete(final):
            aside = work.with_name(f"{work.name}-damaged")
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # another preparation was faster with this, too
                final.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        try:
            work.rename(final)
            break  # and no further look: its work is gone
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    fsync_path(final.parent)


def clear(final: Path) -> None:
    """Remove what preparations of this cache, finished or killed, have left beside it."""
    for path in final.parent.glob(f".*-{final.name}*"):
        shutil.rmtree(path, ignore_errors=True)
