"""What the model will learn from, before anything is trained: `prepare --preview`.

    python -m fullft_cluster.train.preview --config config.yaml [--json]

The first rows are read, tokenised, cut and packed exactly as the preparation does it, and nothing is written.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fullft_cluster.config import Config
from fullft_cluster.config_load import read_config
from fullft_cluster.errors import FullftError
from fullft_cluster.plan import Frozen
from fullft_cluster.samples import BadRow, Sample
from fullft_cluster.train.build import check_split
from fullft_cluster.train.data import Ints
from fullft_cluster.train.encoder import Encoded, Encoder
from fullft_cluster.train.packing import Cut, Documents, batches, cut, pack
from fullft_cluster.train.shards import groups
from fullft_cluster.train.sources import read_samples
from fullft_cluster.train.tally import BAD, Tally
from fullft_cluster.train.tokenizer import encoder_settings, load_tokenizer

ROWS = 10_000
"""Looked at where nothing is said: seconds, and enough to see a format, a length and a mistake."""
BATCH = 8
"""Rows of a batch that is padded to its longest row: a usual one, for the comparison."""


class Span(Frozen, frozen=True):
    """Some tokens in a row that are all learnt, or all not."""

    text: str
    learnt: bool


class Shown(Frozen, frozen=True, kw_only=True):
    """A row as it is learnt."""

    where: str
    format: str
    tokens: int
    labels: int
    spans: tuple[Span, ...]


class Bin(Frozen, frozen=True, kw_only=True):
    """Rows of at most so many tokens, and of more than the bin before."""

    up_to: int
    rows: int


class Padding(Frozen, frozen=True, kw_only=True):
    """Which share of the tokens that are computed would be padding: 0 to 1."""

    packed: float
    to_seq_len: float
    """One row a sequence, padded to train.seq_len."""
    to_longest: float
    """One row a sequence, padded to the longest of `BATCH` rows."""


class Preview(Frozen, frozen=True, kw_only=True):
    """What was found in the rows that were looked at."""

    rows: int
    everything: bool
    """There are no more rows than were looked at."""
    tally: Tally
    problems: tuple[str, ...]
    """Why rows cannot be used: the first of them."""
    on_bad_row: str
    """`error`: a preparation is refused while there are such rows."""
    samples: tuple[Shown, ...]
    seq_len: int
    packing: bool
    tokens: int
    labels: int
    blocks: int
    lengths: dict[str, float]
    """Tokens of a row: min, median, mean, p95, max."""
    histogram: tuple[Bin, ...]
    padding: Padding
    end_of_turn: str | None
    """The token that closes the assistant's turns, where there are chats."""


class _Reader:
    """Reads the first rows; those that cannot be used are told, not raised."""

    def __init__(self, config: Config, most: int) -> None:
        rows = read_samples(
            msgspec.structs.replace(config.data, on_bad_row="skip"), validation=False, seed=config.train.seed
        )
        self._rows, self._most = rows, most
        self.read = 0
        self.tally, self.problems = Tally(), list[str]()

    def __iter__(self) -> Iterator[Sample]:
        for row in islice(self._rows, self._most):
            self.read += 1
            if isinstance(row, BadRow):
                self.drop(row.problem)
            else:
                yield row

    def drop(self, problem: Any) -> None:
        """Count a row that cannot be used."""
        self.tally.drop(BAD, problem.where)
        self.problems.append(str(problem))

    @property
    def at_end(self) -> bool:
        """Return whether there are no more rows."""
        return next(self._rows, None) is None


def preview(config: Config, *, rows: int = ROWS, samples: int = 3) -> Preview:
    """Look at the first rows of the data. Raises UsageError for what is wrong with more than single rows."""
    check_split(config.data)
    tokenizer = load_tokenizer(config)
    encoder = Encoder(encoder_settings(config, tokenizer))
    reader = _Reader(config, rows)
    lengths: list[Ints] = []
    parts: list[Documents] = []
    shown: list[Shown] = []
    seq_len, long_rows = config.train.seq_len, config.data.long_rows
    chats = False
    for group in groups(reader):
        encoded = encoder.encode(group)
        done = cut(encoded.documents, seq_len, long_rows)
        reader.tally.add(Tally.of(encoded, done, long_rows))
        for problem in encoded.problems:
            reader.drop(problem)
        chats = chats or any(sample.messages for sample in encoded.kept)
        shown += islice(_shown(encoded, done, tokenizer), samples - len(shown))
        lengths.append(encoded.documents.lengths)
        parts.append(done.documents)
    all_lengths = np.concatenate([np.zeros(0, dtype=np.int64), *lengths])
    packed = [pack(batch, seq_len, packing=config.data.packing) for batch in batches(parts)]
    documents = np.concatenate([np.zeros(0, dtype=np.int64), *(part.lengths for part in parts)])
    blocks = sum(len(part.blocks) for part in packed)
    return Preview(
        rows=reader.read, everything=reader.at_end, tally=reader.tally,
        problems=tuple(reader.problems[:20]), on_bad_row=config.data.on_bad_row,
        samples=tuple(shown), seq_len=seq_len, packing=config.data.packing, tokens=int(documents.sum()),
        labels=int(sum(part.supervised.sum() for part in packed)), blocks=blocks, lengths=_summary(all_lengths),
        histogram=_histogram(all_lengths), padding=_padding(documents, blocks, seq_len),
        end_of_turn=tokenizer.convert_ids_to_tokens(encoder.end_of_turn) if chats and encoder.end_of_turn else None,
    )  # fmt: skip


def _shown(encoded: Encoded, done: Cut, tokenizer: Any) -> Iterator[Shown]:
    """Yield rows as they are learnt, those first of which something is."""
    documents = encoded.documents
    for row in dict.fromkeys([*done.row.tolist(), *range(len(encoded.kept))]):
        end, length = int(documents.ends[row]), int(documents.lengths[row])
        ids = documents.tokens[end - length : end].tolist()
        learnt = documents.supervised[end - length : end].copy()
        learnt[0] = False  # nothing comes before it
        edges = [0, *(np.flatnonzero(np.diff(learnt)) + 1).tolist(), length]
        # What a run of tokens adds to those before it: alone, a tokenizer may decode it without its first space.
        texts = [tokenizer.decode(ids[:edge], clean_up_tokenization_spaces=False) for edge in edges]
        spans = (
            Span(after[len(before) :], bool(learnt[edge]))
            for edge, before, after in zip(edges, texts, texts[1:], strict=False)
        )
        sample = encoded.kept[row]
        yield Shown(
            where=sample.where, format=sample.format, tokens=length, labels=int(learnt.sum()), spans=tuple(spans)
        )


def _summary(lengths: Ints) -> dict[str, float]:
    if not len(lengths):
        return {}
    return {
        "min": int(lengths.min()), "median": float(np.median(lengths)), "mean": round(float(lengths.mean()), 1),
        "p95": float(np.percentile(lengths, 95)), "max": int(lengths.max()),
    }  # fmt: skip


def _histogram(lengths: Ints) -> tuple[Bin, ...]:
    """Return how many rows have how many tokens, by powers of two."""
    if not len(lengths):
        return ()
    powers = np.ceil(np.log2(np.maximum(lengths, 1))).astype(int)
    first = int(powers.min())
    return tuple(Bin(up_to=2 ** (first + n), rows=int(rows)) for n, rows in enumerate(np.bincount(powers)[first:]))


def _padding(documents: Ints, blocks: int, seq_len: int) -> Padding:
    """Return the share of padding in blocks, and in one document a sequence."""
    tokens = int(documents.sum())
    spare = -len(documents) % BATCH
    longest = np.concatenate([documents, np.zeros(spare, dtype=np.int64)]).reshape(-1, BATCH).max(axis=1, initial=0)
    widths = np.repeat(longest, BATCH)[: len(documents)]
    return Padding(
        packed=_share(tokens, blocks * seq_len), to_seq_len=_share(tokens, len(documents) * seq_len),
        to_longest=_share(tokens, int(widths.sum())),
    )  # fmt: skip


def _share(tokens: int, computed: int) -> float:
    return round(1 - tokens / computed, 4) if computed else 0.0


def main() -> int:
    """Run from a command line; return the exit code: 0, 2 for the user's mistakes, 1 for anything else."""
    parser = argparse.ArgumentParser(description="Show what the model will learn from.")
    parser.add_argument("--config", required=True, type=Path, help="a config.yaml")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows to look at")
    parser.add_argument("--samples", type=int, default=3, help="rows to show")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    try:
        found = preview(read_config(options.config), rows=options.rows, samples=options.samples)
    except FullftError as error:
        print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        if options.json:
            problems = [vars(problem) for problem in error.problems]
            print(msgspec.json.encode({"error": {"exit_code": error.exit_code, "problems": problems}}).decode())
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return 1
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        from fullft_cluster.train.preview_report import print_preview

        print_preview(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
