"""Rows to shards of tokens on all cores, resumable: a shard that is there is not made again.

Rows are numbered as they are read, and so many make a shard; the same files give the same shards, whoever makes them.
Each is written by rename, so several preparations of the same data may even share the work. One process reads the rows;
others, which import no torch, tokenise them. Little data is tokenised where it is read: starting processes would take
longer.
"""

from __future__ import annotations

import ctypes
import os
import signal
import uuid
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fullft_cluster.errors import FullftError, Problem
from fullft_cluster.rundir import fsync_path
from fullft_cluster.samples import Sample
from fullft_cluster.train.encoder import Encoder, EncoderSettings
from fullft_cluster.train.packing import Documents, LongRows, cut, pack
from fullft_cluster.train.tally import Tally

SHARD_ROWS = 2048
SHARD_CHARACTERS = 4_000_000
"""At most so many in a shard (a row alone may have more): some 100 MB while it is tokenised."""
INLINE_SHARDS = 8
"""Data of so many shards is tokenised in this process, by the tokenizer's threads: as fast as others would start."""


class ShardSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What one who makes a shard is told."""

    directory: str
    encoder: EncoderSettings
    seq_len: int
    long_rows: LongRows
    packing: bool = True
    index_only: bool = False
    """For data that is streamed: of what is learnt only the sizes of the blocks are kept."""


def shard_path(directory: Path, number: int) -> Path:
    """Return where a shard lies."""
    return directory / f"{number:06d}.npz"


def size_of(sample: Sample) -> int:
    """Return the characters of a sample."""
    return len(sample.prompt) + len(sample.completion) + sum(len(m["content"] or "") for m in sample.messages)


def groups(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Yield samples in the groups that shards are made of."""
    group: list[Sample] = []
    characters = 0
    for sample in samples:
        size = size_of(sample)
        if group and (len(group) == SHARD_ROWS or characters + size > SHARD_CHARACTERS):
            yield group
            group, characters = [], 0
        group.append(sample)
        characters += size
    if group:
        yield group


class ShardMaker:
    """Tokenises groups of samples into shards."""

    def __init__(self, settings: ShardSettings) -> None:
        self._settings = settings
        self._encoder = Encoder(settings.encoder)

    def make(self, number: int, samples: list[Sample]) -> Tally:
        """Write one shard; return what became of its rows. Raises UsageError."""
        encoded = self._encoder.encode(samples)
        done = cut(encoded.documents, self._settings.seq_len, self._settings.long_rows)
        held_out = encoded.held_out[done.row]
        tally = Tally.of(encoded, done, self._settings.long_rows)
        path = shard_path(Path(self._settings.directory), number)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
        arrays: dict[str, Any] = {"tally": np.frombuffer(msgspec.json.encode(tally), dtype=np.uint8)}
        documents = done.documents
        if self._settings.index_only:
            packed = pack(documents.take(~held_out), self._settings.seq_len, packing=self._settings.packing)
            arrays |= {"blocks": packed.blocks, "valid": packed.labels}
            documents, held_out = documents.take(held_out), held_out[held_out]
        arrays |= {
            "tokens": documents.tokens, "supervised": np.packbits(documents.supervised),
            "lengths": documents.lengths, "held_out": held_out,
        }  # fmt: skip
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        fsync_path(partial)
        partial.rename(path)
        return tally


def read_tally(directory: Path, number: int) -> Tally | None:
    """Return what became of the rows of a shard; None where there is none, or none that can be read."""
    try:
        with np.load(shard_path(directory, number), allow_pickle=False) as arrays:
            return msgspec.json.decode(arrays["tally"].tobytes(), type=Tally)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def read_documents(directory: Path, shards: int, *, held_out: bool) -> Iterator[Documents]:
    """Yield the documents of each shard in turn: those that are held out, or the others. Raises OSError."""
    for number in range(shards):
        with np.load(shard_path(directory, number), allow_pickle=False) as arrays:
            tokens = arrays["tokens"]
            supervised = np.unpackbits(arrays["supervised"], count=len(tokens)).astype(bool)
            yield Documents(tokens, supervised, arrays["lengths"]).take(arrays["held_out"] == held_out)


# --- on all cores

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_maker: ShardMaker | None = None


def _begin(settings: ShardSettings) -> None:
    """Set up a process that makes shards. It ends with the one that started it, however that ends."""
    global _maker  # noqa: PLW0603 - the one state of such a process, set once
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    starter = parent_process()
    if starter is None or os.getppid() != starter.pid:  # it had ended before it was asked to tell of its end
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the group; the one that started it decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _maker = ShardMaker(settings)


def _make(number: int, samples: list[Sample]) -> Tally | tuple[Problem, ...]:
    assert _maker is not None
    try:
        return _maker.make(number, samples)
    except FullftError as error:  # its words; pickled, it would lose its problems
        return error.problems


def read_blocks(directory: Path, number: int) -> tuple[Any, Any]:
    """Return the tokens and the labels of each block of a shard of which only these are kept. Raises OSError."""
    with np.load(shard_path(directory, number), allow_pickle=False) as arrays:
        return arrays["blocks"], arrays["valid"]


def make_shards(
    grouped: Iterable[list[Sample]], settings: ShardSettings, tell: Callable[[Tally], None], *, cores: int | None = None
) -> int:
    """Make a shard of each group, those that are there aside, and return how many there are. Raises UsageError.

    `tell` is called with what became of the rows of each shard, in their order.
    """
    directory = Path(settings.directory)
    directory.mkdir(parents=True, exist_ok=True)
    numbered = enumerate(grouped)
    first = [group for _, group in zip(range(INLINE_SHARDS + 1), numbered, strict=False)]
    cores = cores or len(os.sched_getaffinity(0))
    if len(first) <= INLINE_SHARDS or cores == 1:
        maker = ShardMaker(settings)
        count = 0
        for number, group in _chained(first, numbered):
            tell(read_tally(directory, number) or maker.make(number, group))
            count += 1
        return count
    return _on_all_cores(_chained(first, numbered), settings, tell, cores)


def _chained(first: list[tuple[int, Any]], rest: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    yield from first
    yield from rest


def _on_all_cores(
    numbered: Iterator[tuple[int, list[Sample]]], settings: ShardSettings, tell: Callable[[Tally], None], cores: int
) -> int:
    directory = Path(settings.directory)
    waiting: deque[Future[Any]] = deque()
    count = 0
    with ProcessPoolExecutor(cores, get_context("spawn"), _begin, (settings,)) as pool:
        try:
            for number, group in numbered:
                count += 1
                known = read_tally(directory, number)
                waiting.append(_done(known) if known else pool.submit(_make, number, group))
                if len(waiting) > 2 * cores:  # so many groups are in memory
                    tell(_result(waiting.popleft()))
            while waiting:
                tell(_result(waiting.popleft()))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return count


def _done(tally: Tally) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(tally)
    return future


def _result(future: Future[Any]) -> Tally:
    found: Tally | tuple[Problem, ...] = future.result()
    if isinstance(found, Tally):
        return found
    from fullft_cluster.errors import UsageError

    raise UsageError(found)
