"""What became of the rows: how many were read, kept, held out, cut, dropped and why."""

from __future__ import annotations

from collections import Counter

import msgspec

from fullft_cluster.errors import Problem
from fullft_cluster.rows import MAX_PROBLEMS
from fullft_cluster.train.encoder import Encoded
from fullft_cluster.train.packing import Cut, LongRows

NOTHING_TO_LEARN = "nothing to learn"
"""No token of the row is supervised, or none that another comes before."""
TOO_LONG = "longer than train.seq_len"
BAD = "bad row"


class Dropped(msgspec.Struct, kw_only=True):
    """Rows that were left out for one reason."""

    rows: int = 0
    where: list[str] = msgspec.field(default_factory=list)
    """The first of them: `file:line`."""


class Tally(msgspec.Struct, kw_only=True):
    """What became of some rows. Counts of rows unless said otherwise."""

    rows: int = 0
    """To learn from."""
    held_out: int = 0
    """For validation."""
    split: int = 0
    """Cut into several documents, because they are longer than train.seq_len."""
    truncated: int = 0
    pieces_dropped: int = 0
    """Documents of split rows in which no token is supervised."""
    tokens: int = 0
    formats: dict[str, int] = msgspec.field(default_factory=dict)
    dropped: dict[str, Dropped] = msgspec.field(default_factory=dict)
    problems: list[list[str]] = msgspec.field(default_factory=list)
    """(where, what, fix) of rows that a chat template refuses."""

    @property
    def read(self) -> int:
        """Return the rows that were read, whatever became of them."""
        return self.rows + self.held_out + len(self.problems) + sum(entry.rows for entry in self.dropped.values())

    @staticmethod
    def of(encoded: Encoded, cut: Cut, long_rows: LongRows) -> Tally:
        """Return what became of the rows of one shard."""
        import numpy as np

        kept = np.zeros(len(encoded.kept), dtype=bool)
        kept[cut.row] = True
        changed = kept & cut.too_long
        tally = Tally(
            rows=int((kept & ~encoded.held_out).sum()), held_out=int((kept & encoded.held_out).sum()),
            split=int(changed.sum()) if long_rows == "split" else 0,
            truncated=int(changed.sum()) if long_rows == "truncate" else 0,
            pieces_dropped=cut.pieces_dropped, tokens=len(cut.documents.tokens),
            formats=dict(Counter(sample.format for sample in encoded.kept)),
            problems=[[problem.where, problem.what, problem.fix] for problem in encoded.problems],
        )  # fmt: skip
        for row in np.flatnonzero(~kept):
            reason = TOO_LONG if long_rows == "drop" and cut.too_long[row] else NOTHING_TO_LEARN
            tally.drop(reason, encoded.kept[row].where)
        return tally

    def drop(self, reason: str, where: str) -> None:
        """Count one row that is left out."""
        entry = self.dropped.setdefault(reason, Dropped())
        entry.rows += 1
        if len(entry.where) < MAX_PROBLEMS:
            entry.where.append(where)

    def add(self, other: Tally) -> None:
        """Add the counts of other rows."""
        for name in ("rows", "held_out", "split", "truncated", "pieces_dropped", "tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for format_, rows in other.formats.items():
            self.formats[format_] = self.formats.get(format_, 0) + rows
        for reason, more in other.dropped.items():
            entry = self.dropped.setdefault(reason, Dropped())
            entry.rows += more.rows
            entry.where = [*entry.where, *more.where][:MAX_PROBLEMS]

    def take_problems(self) -> list[Problem]:
        """Return the rows that a chat template refused."""
        return [Problem(*problem) for problem in self.problems]
