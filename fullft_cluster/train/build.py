"""Build a cache: rows to shards of tokens, shards to blocks, for what is learnt and for what is held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fullft_cluster.config import Config, DataConfig
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.row_sources import sources_of
from fullft_cluster.rows import MAX_PROBLEMS
from fullft_cluster.samples import BadRow, Sample
from fullft_cluster.train.cache_writer import write_cache, write_index
from fullft_cluster.train.chunks import Chunks
from fullft_cluster.train.data import VALIDATION, CacheMeta
from fullft_cluster.train.encoder import Encoder, EncoderSettings
from fullft_cluster.train.packing import Documents
from fullft_cluster.train.progress import Bar, count_rows, watched
from fullft_cluster.train.shards import ShardSettings, groups, make_shards, read_blocks, read_documents
from fullft_cluster.train.sources import read_samples
from fullft_cluster.train.tally import BAD, NOTHING_TO_LEARN, Tally


class Rows:
    """Reads the rows of one part of the data (to learn, or to evaluate on), and knows what became of them."""

    def __init__(self, config: DataConfig, *, validation: bool, seed: int) -> None:
        self._config, self._validation, self._seed = config, validation, seed
        self.tally = Tally()
        self.chats = False
        self._problems: list[Problem] = []

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples; count the bad rows that are passed over. Raises UsageError as `read_samples` does."""
        for row in read_samples(self._config, validation=self._validation, seed=self._seed):
            if isinstance(row, BadRow):
                self.tally.drop(BAD, row.problem.where)
                continue
            self.chats = self.chats or bool(row.messages)
            yield row

    def groups(self) -> Iterator[list[Sample]]:
        """Yield the samples in the groups that shards are made of."""
        return groups(self)

    def tell(self, tally: Tally) -> None:
        """Add what became of some rows. Raises UsageError for too many that a chat template refuses."""
        self.tally.add(tally)
        refused = tally.take_problems()
        if self._config.on_bad_row == "skip":
            for problem in refused:
                self.tally.drop(BAD, problem.where)
            return
        self._problems += refused
        if len(self._problems) >= MAX_PROBLEMS:
            what = f"gave up after {MAX_PROBLEMS} rows that the chat template refuses"
            raise UsageError([*self._problems[:MAX_PROBLEMS], Problem("data", what)])

    def check(self) -> None:
        """Raise UsageError for rows that a chat template refuses, and where a part is left without rows."""
        if self._problems:
            raise UsageError(self._problems)
        key = "data.validation" if self._validation else "data.train"
        if not self.tally.rows:
            raise UsageError(Problem(key, f"has no row with something to learn{self._why()}", self._fix()))
        fraction = self._config.validation_fraction
        if fraction and not self._validation and not self.tally.held_out:
            what = f"{fraction:g} of {self.tally.rows} rows is none"
            raise UsageError(Problem("data.validation_fraction", what, "Raise it, or name a file as data.validation."))

    def _why(self) -> str:
        said = [f"{entry.rows} {reason}, the first {entry.where[0]}" for reason, entry in self.tally.dropped.items()]
        said += [f"{self.tally.held_out} held out for validation"] if self.tally.held_out else []
        return f": {'; '.join(said)}" if said else ""

    def _fix(self) -> str:
        if NOTHING_TO_LEARN in self.tally.dropped:
            return "Only completions and the assistant's turns are learnt, unless data.train_on_inputs is set."
        return "Give more rows." if self.tally.held_out else "Raise train.seq_len, or set data.long_rows: split."


class StreamedRows(Rows):
    """The rows to learn of data that is streamed: each group is a chunk, which can be read again alone."""

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__(config, validation=False, seed=seed)
        self.chunks = Chunks(config, seed, lambda where: self.tally.drop(BAD, where))

    def groups(self) -> Iterator[list[Sample]]:
        """Yield the samples of each chunk."""
        for group in self.chunks:
            self.chats = self.chunks.chats
            yield group


@dataclass(frozen=True)
class _Part:
    """Rows that were tokenised: those of data.train, or those of data.validation."""

    shards: Path
    count: int
    rows: Rows


def build(work: Path, shards: Path, config: Config, encoder: EncoderSettings, meta: CacheMeta) -> None:
    """Fill the directory `work` with a cache; tokenised rows are kept in `shards`. Raises UsageError."""
    check_split(config.data)
    train = _tokenise(shards / "train", config, encoder, validation=False)
    named = None
    if config.data.validation:
        # Rows that are named for it are all for validation.
        whole = msgspec.structs.replace(encoder, validation_fraction=0.0)
        named = _tokenise(shards / VALIDATION, config, whole, validation=True)
    if train.rows.chats or (named and named.rows.chats):
        meta = msgspec.structs.replace(meta, end_of_turn_id=Encoder(encoder).end_of_turn)
    if named:
        _pack(work / VALIDATION, named, config, meta, held_out=False)
    elif config.data.validation_fraction:
        _pack(work / VALIDATION, train, config, meta, held_out=True)
    has_validation = bool(named or config.data.validation_fraction)
    meta = msgspec.structs.replace(meta, validation=has_validation)
    if isinstance(train.rows, StreamedRows):
        _write_index(work, train, train.rows.chunks, meta)
    else:
        _pack(work, train, config, meta, held_out=False)


def _write_index(directory: Path, part: _Part, chunks: Chunks, meta: CacheMeta) -> None:
    """Write a cache that holds no tokens: which rows there are, and how they will be packed."""
    sizes = [read_blocks(part.shards, number) for number in range(part.count)]
    tally = part.rows.tally
    meta = msgspec.structs.replace(meta, streaming=True, rows=tally.rows, tally=msgspec.to_builtins(tally))
    write_index(directory, sizes, chunks.index(len(blocks) for blocks, _ in sizes), meta)


def check_split(data: DataConfig) -> None:
    """Raise UsageError where two things are to be evaluated on."""
    if data.validation and data.validation_fraction:
        raise UsageError(Problem("data.validation_fraction", "is set beside data.validation", "Keep one of them."))


def _tokenise(directory: Path, config: Config, encoder: EncoderSettings, *, validation: bool) -> _Part:
    streamed = config.data.streaming and not validation
    seed = config.train.seed
    rows = StreamedRows(config.data, seed) if streamed else Rows(config.data, validation=validation, seed=seed)
    settings = ShardSettings(
        directory=str(directory), encoder=encoder, seq_len=config.train.seq_len, long_rows=config.data.long_rows,
        packing=config.data.packing, index_only=streamed,
    )  # fmt: skip
    total = count_rows(sources_of(config.data, validation=validation)) if watched() else None
    with Bar("validation rows" if validation else "rows", total) as bar:

        def tell(tally: Tally) -> None:
            rows.tell(tally)
            bar.advance(tally.read, tally.tokens)

        count = make_shards(rows.groups(), settings, tell)
    rows.check()
    return _Part(directory, count, rows)


def _pack(directory: Path, part: _Part, config: Config, meta: CacheMeta, *, held_out: bool) -> None:
    tally = part.rows.tally
    rows = tally.held_out if held_out else tally.rows
    meta = msgspec.structs.replace(meta, rows=rows, tally=msgspec.to_builtins(tally))
    with Bar("packed" if config.data.packing else "written", rows) as bar:

        def told() -> Iterator[Documents]:
            for documents in read_documents(part.shards, part.count, held_out=held_out):
                yield documents
                bar.advance(len(documents.lengths), len(documents.tokens))

        write_cache(directory, told(), meta, packing=config.data.packing)
