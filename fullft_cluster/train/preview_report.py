"""A preview in print: on a terminal what is learnt stands out by its colour, elsewhere in [[double brackets]]."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from fullft_cluster.train.preview import BATCH, Preview, Shown

LONGEST = 1500
"""Characters of a row's span that are shown; of a longer one the middle is left out."""
BAR = 40
"""Characters of the longest bar."""


def print_preview(found: Preview, console: Console | None = None) -> None:
    """Print a preview on stdout."""
    out = console or Console(highlight=False, soft_wrap=True)
    legend = ("learnt in green", "green") if out.is_terminal else ("learnt in [[ ]]", "")
    for sample in found.samples:
        _print_sample(sample, out, legend[0])
    which = "all" if found.everything else "the first"
    formats = ", ".join(f"{name} ({rows:,})" for name, rows in found.tally.formats.items())
    out.print(f"rows: {which} {found.rows:,} looked at; format {formats or 'unknown'}", markup=False)
    if found.end_of_turn:
        out.print(f"turns of the assistant end with {found.end_of_turn}", markup=False)
    share = found.labels / found.tokens if found.tokens else 0
    out.print(
        f"tokens: {found.tokens:,}, of which {share:.0%} are learnt; {found.blocks:,} sequences of {found.seq_len:,}"
    )
    _print_lengths(found, out)
    _print_padding(found, out)
    _print_dropped(found, out)


def _print_sample(sample: Shown, out: Console, legend: str) -> None:
    out.print(f"--- {sample.where} ({sample.format}, {sample.tokens} tokens, {sample.labels} {legend})", markup=False)
    text = Text()
    for span in sample.spans:
        shown = _shortened(span.text)
        if out.is_terminal:
            text.append(shown, style="bold green" if span.learnt else "dim")
        else:
            text.append(f"[[{shown}]]" if span.learnt else shown)
    out.print(text)


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} ... {len(text) - 2 * half:,} characters ... {text[-half:]}"


def _print_lengths(found: Preview, out: Console) -> None:
    if not found.lengths:
        return
    words = ", ".join(f"{name} {value:,.0f}" for name, value in found.lengths.items())
    out.print(f"tokens of a row: {words}")
    most = max(entry.rows for entry in found.histogram)
    width = len(f"{found.histogram[-1].up_to:,}")
    for entry in found.histogram:
        bar = "#" * max(round(BAR * entry.rows / most), 1 if entry.rows else 0)
        over = "  longer than train.seq_len" if entry.up_to // 2 >= found.seq_len and entry.rows else ""
        out.print(f"  up to {entry.up_to:>{width},} {bar:<{BAR}} {entry.rows:,}{over}")


def _print_padding(found: Preview, out: Console) -> None:
    padding = found.padding
    here = "packed" if found.packing else "one row a sequence (data.packing: false)"
    out.print(f"padding: {padding.packed:.1%} {here}")
    if not found.packing:
        return
    for share, words in (
        (padding.to_seq_len, f"padded to {found.seq_len:,}"),
        (padding.to_longest, f"padded to the longest of {BATCH} rows"),
    ):
        times = (1 - padding.packed) / (1 - share) if share < 1 else 1.0
        out.print(f"  {share:.1%} {words}: packing computes {times:.1f} times as many useful tokens for the same")


def _print_dropped(found: Preview, out: Console) -> None:
    tally = found.tally
    for reason, entry in tally.dropped.items():
        more = f", and {entry.rows - len(entry.where):,} more" if entry.rows > len(entry.where) else ""
        rows = "row" if entry.rows == 1 else "rows"
        out.print(f"dropped, {reason}: {entry.rows:,} {rows}: {', '.join(entry.where)}{more}", markup=False)
    for problem in found.problems:
        out.print(f"  {problem}", markup=False)
    if found.problems and found.on_bad_row == "error":
        out.print("`prepare` refuses bad rows; it passes over them with --set data.on_bad_row=skip")
    for count, words in (
        (tally.split, "rows are longer than train.seq_len and are split"),
        (tally.truncated, "rows are longer than train.seq_len and are truncated"),
        (tally.pieces_dropped, "pieces of them have nothing to learn and are left out"),
        (tally.held_out, "rows are held out for validation"),
    ):
        if count:
            out.print(f"{count:,} {words}")
