"""The part of docs/benchmarks.md about training, from the raw samples alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.tables import Bar, percent, table
from benchmarks.training_stats import Spread, chance, overhead, ratio, speeds, spread, step_seconds

Raw = dict[str, Any]
OURS = "fullft-cluster"
OVER_PADDED, OVER_SFT, OVERHEAD, BY_CHANCE = 3.0, 1.0, 0.02, 0.05
HOW = {
    "ours": "our worker (`fullft_cluster.train.worker`) on a run directory, all files written, metrics at each step. "
    "On CPUs its attention goes document by document, the others' under a mask (sdpa); a GPU with flash-attn has the "
    "first for all",
    "padded": "transformers' `Trainer`, `tokenizer(padding=\"max_length\", truncation=True)`, "
    "`DataCollatorForLanguageModeling(mlm=False)`",
    "sft": "TRL's `SFTTrainer`, `packing=True` (best fit, its default), its default loss (the fused head)",
    "trainer": "transformers' `Trainer` on our packed blocks, which lie in memory",
}  # fmt: skip


HELD_EQUAL = (
    "Each candidate has processes of its own. All are started and warmed up; then they take turns, a few steps each,",
    "while the others sleep, in an order that changes from round to round. Figures are medians over rounds; a ratio is",
    "the median of the ratios within rounds, with its lowest and highest. Useful tokens are those of the text and each",
    "row's end; padding is none. Weights, tokenizer, text, learning rate, precision, threads and `deepspeed.json` are",
    "the same for all, gloo connects the processes. Logging is as each has it by default.",
)


def number(value: float) -> str:
    """Return a figure in three or four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def between(values: Spread, unit: str = "") -> str:
    """Return the ends of a spread."""
    return f"{number(values.low)} to {number(values.high)}{unit}"


def times(values: Spread) -> str:
    """Return a ratio with its ends."""
    return f"{values.median:.2f} ({values.low:.2f} to {values.high:.2f})"


def comparison(raw: Raw) -> list[str]:
    """Return the table of one comparison."""
    samples = raw["samples"]
    rows = []
    for name, found in samples.items():
        speed, step = spread(speeds(found)), spread(step_seconds(found))
        tokens = sum(sample[1] for sample in found) / sum(sample[2] for sample in found)
        rows.append((
            name, number(speed.median), between(speed), f"{step.median:.2f}", f"{tokens:,.0f}",
            "" if name == OURS else times(ratio(samples[OURS], found)),
        ))  # fmt: skip
    head = ("", "useful tokens/s", "lowest to highest", "seconds a step", "useful tokens a step", "ours over it")
    return [f"### {raw['title']}", "", told_case(raw["case"]), "", *table(head, rows)]


def told_case(case: Raw) -> str:
    """Return a case in a sentence."""
    recomputed = "with" if case["activation_checkpointing"] else "without"
    processes = "one process" if case["processes"] == 1 else f"{case['processes']} processes"
    return (
        f"LLaMA shape, {case['layers']} layers of width {case['hidden']} ({case['parameters'] / 1e6:.1f} million "
        f"parameters), {case['precision']}, {recomputed} gradient checkpointing, {processes}, micro-batch "
        f"{case['micro_batch_size']} x {case['seq_len']} tokens at most, accumulation {case['accumulation']}, "
        f"{case['threads']} thread{'s' if case['threads'] > 1 else ''} a process."
    )


def overhead_lines(raw: Raw) -> list[str]:
    """Return the section on the overhead."""
    rows = []
    for measured in raw:
        found = overhead([tuple(pair) for pair in measured["pairs"]])
        case = measured["case"]
        rows.append((
            f"{case['processes']} x ZeRO-3, {case['layers']} x {case['hidden']}, {case['seq_len']} tokens",
            f"{1000 * found.bare_seconds:.0f}", f"{1000 * found.seconds:+.1f}", percent(found.share),
            f"{percent(found.low)} to {percent(found.high)}", str(found.steps),
        ))  # fmt: skip
    return [
        "### Overhead of a step", "",
        "`deepspeed.initialize`, the same model, attention, loss and optimizer, batches in memory, and no more, in our",
        "worker's own process: after each of our steps the bare loop does the step with the same tokens, and each of",
        "ours is held against the mean of the bare ones before and after it. The interval is the median's, 95 %.", "",
        *table(("", "bare ms", "ours more, ms", "overhead", "interval", "steps"), rows),
    ]  # fmt: skip


def resume_lines(raw: Raw) -> list[str]:
    """Return the section on resuming."""
    rows = []
    for place in raw["places"]:
        found = raw["samples"][str(place)]
        line = [f"step {place:,}"]
        for moment in ("start", "engine", "resumed"):
            values = spread([sample[moment] for sample in found])
            line += [f"{values.median:.3f} ({values.low:.3f} to {values.high:.3f})"]
        rows.append(line)
    head = ("resumed at", "from process start, s", "from the engine's being there, s", "from the loaded checkpoint, s")
    return [
        "### Resuming", "",
        "A run that has really trained to the step, with a committed checkpoint; workers are started on both in turns.",
        f"Time to the end of the first new step, {len(raw['samples'][str(raw['places'][0])])} starts each.", "",
        *table(head, rows), "",
        "How often chance alone makes a difference as large (permutation test): "
        + ", ".join(f"{name} {resume_chance(raw, moment):.2f}" for moment, name in MOMENTS) + ".",
    ]  # fmt: skip


MOMENTS = (("start", "from the start"), ("engine", "from the engine"), ("resumed", "from the checkpoint"))


def resume_chance(raw: Raw, moment: str) -> float:
    """Return how often chance alone makes the two places differ as they do."""
    first, second = ([sample[moment] for sample in raw["samples"][str(place)]] for place in raw["places"])
    return chance(first, second)


def bars(raw: Raw) -> list[Bar]:
    """Return what was asked, and whether it is so in every comparison."""
    made = []
    for part, name, least in (
        ("padded", "padded to the maximum", OVER_PADDED),
        ("sft", "SFTTrainer, packing", OVER_SFT),
    ):
        found = [
            ratio(each["samples"][OURS], samples)
            for each in raw["comparisons"]
            for other, samples in each["samples"].items()
            if each["ways"][other] == part
        ]
        made.append(Bar(
            f"useful tokens/s: at least {least:.1f} x {name}", all(each.median >= least for each in found),
            ", ".join(times(each) for each in found),
        ))  # fmt: skip
    found = [overhead([tuple(pair) for pair in each["pairs"]]) for each in raw["overhead"]]
    told = ", ".join(f"{percent(each.share)} of {1000 * each.bare_seconds:.0f} ms" for each in found)
    made.append(Bar("overhead of a step over a bare DeepSpeed loop: under 2 %", found[0].share < OVERHEAD, told))
    if raw["resume"]:
        by_chance = resume_chance(raw["resume"], "start")
        places = " and ".join(f"{place:,}" for place in raw["resume"]["places"])
        asked = f"time to the first new step, resumed at step {places}: equal within noise"
        made.append(Bar(asked, by_chance > BY_CHANCE, f"a difference as large comes by chance in {by_chance:.0%}"))
    return made


def page(raw: Raw) -> list[str]:
    """Return the lines of the part."""
    versions = ", ".join(f"{name} {version}" for name, version in raw["versions"].items())
    machine = raw["machine"]
    sections: list[Sequence[str]] = [
        ["## Training", "",
         f"`{raw['command']}`, {raw['date']}, in {raw['minutes']:.0f} minutes, on {machine['cpu']}, {machine['cores']} "
         f"cores, {machine['memory_gib']:.0f} GiB;", f"load of the machine before: {machine['load']:.1f}. {versions}.",
         f"Text: {raw['text']}.", "",
         *table(("asked", "", "figure"), (bar.row() for bar in bars(raw)), right=3)],
        [*HELD_EQUAL, "", *(f"- {name}: {HOW[way]}" for name, way in raw["ways"].items())],
        *(comparison(each) for each in raw["comparisons"]),
        ["![Useful tokens a second](benchmarks-training.svg)"],
        overhead_lines(raw["overhead"]),
        *([resume_lines(raw["resume"])] if raw["resume"] else []),
    ]  # fmt: skip
    return "\n\n".join("\n".join(lines) for lines in sections).split("\n")
