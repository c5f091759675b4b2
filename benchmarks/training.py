"""Measures our training beside others' on this machine and writes docs/benchmarks.md: one command, a quarter hour.

python -m benchmarks.training              measures; writes benchmarks/data/training.json, then page and figure from it
python -m benchmarks.training --page       writes page and figure from the samples that were measured last
python -m benchmarks.training --check      exits 1 where the page is not what --page would write
python -m benchmarks.training --gpu        the part for a GPU (training_gpu.py), where there is one
python -m benchmarks.training --quick DIR  takes the ways through the code in seconds, into DIR; figures mean nothing

The machine has to be quiet: the load before the start is written down.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import training_gpu
from benchmarks.marked_page import NEW_PAGE, with_part
from benchmarks.training_case import ROOT, Bench, Case, find_text, make_bench
from benchmarks.training_page import OURS, bars, page
from benchmarks.training_plots import FIGURE, draw
from benchmarks.training_turns import Candidate, compare
from fullft_cluster.units import GIB

DOCS = ROOT / "docs"
PAGE, RAW = DOCS / "benchmarks.md", ROOT / "benchmarks" / "data" / "training.json"
PART, GPU_PART, MODULE = "training", "training-gpu", "benchmarks.training"
GPU_RAW = RAW.with_name("training_gpu.json")
NAMES = {
    OURS: "ours", "Trainer, padded": "padded", "TRL SFTTrainer, packing": "sft",
    "Trainer on our blocks": "trainer", "SFTTrainer without DeepSpeed": "sft-plain",
    "Trainer, padded, without DeepSpeed": "padded-plain",
}  # fmt: skip
LIBRARIES = ("torch", "deepspeed", "transformers", "trl", "accelerate", "fullft-cluster")


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    case: Case
    rounds: int = 7
    steps: int = 2
    overhead: tuple[tuple[Case, int], ...] = ()
    """Cases, with the steps of each."""
    resume: Case | None = None
    places: tuple[int, int] = (100, 10_000)
    repeats: int = 7


FULL = Effort(
    case=Case(),
    overhead=(
        (Case(seq_len=1024), 100),
        (Case(layers=2, hidden=64, intermediate=128, seq_len=256), 200),
    ),
    resume=Case(
        layers=1, hidden=32, intermediate=64, heads=2, kv_heads=2, seq_len=32, processes=1, max_steps=20_000,
        log_steps=100,
    ),
)  # fmt: skip
SMALL = Case(layers=1, hidden=32, intermediate=64, heads=2, kv_heads=2, seq_len=128, processes=1, rows=200)
QUICK = Effort(case=SMALL, rounds=2, steps=1, overhead=((SMALL, 4),))


def tell(line: str) -> None:
    """Say how far it is."""
    print(time.strftime("%H:%M:%S"), line, flush=True)


def told(bench: Bench, facts: dict[str, Any]) -> dict[str, Any]:
    """Return a case as the page tells it."""
    parameters = json.loads(bench.run.plan.read_bytes())["model"]["parameters"]
    return {**asdict(bench.case), "parameters": parameters, "threads": facts.get("threads", 1)}


def compared(title: str, names: Sequence[str], bench: Bench, effort: Effort, extra: Sequence[Candidate] = ()) -> Any:
    """Return the samples of one comparison."""
    tell(title)
    candidates = [*(Candidate(name, NAMES[name], bench) for name in names), *extra]
    samples, facts = compare(candidates, rounds=effort.rounds, steps=effort.steps, tell=tell)
    return {
        "title": title, "case": told(bench, facts[OURS]), "samples": samples, "facts": facts,
        "ways": {candidate.name: candidate.way for candidate in candidates},
    }  # fmt: skip


def comparisons(folder: Path, effort: Effort) -> list[Any]:
    """Return all comparisons: two processes, with FSDP beside, and one process, with what leaves DeepSpeed out."""
    case = effort.case
    if case.processes == 1:
        names = [OURS, "Trainer, padded", "TRL SFTTrainer, packing"]
        return [compared("One process, DeepSpeed ZeRO-3", names, make_bench(folder / "one", case), effort)]
    names = [OURS, "Trainer, padded", "TRL SFTTrainer, packing", "Trainer on our blocks"]
    two = make_bench(folder / "two", case)
    made = [compared("Two processes, DeepSpeed ZeRO-3", names, two, effort, fsdp(folder, case))]
    one = make_bench(folder / "one", replace(case, processes=1))
    return [*made, compared("One process, DeepSpeed ZeRO-3", list(NAMES), one, effort)]


def fsdp(folder: Path, case: Case) -> list[Candidate]:
    """Return our own run under FSDP."""
    bench = make_bench(folder / "fsdp", replace(case, engine="fsdp"))
    return [Candidate(f"{OURS}, FSDP", "ours", bench)]


def overheads(folder: Path, effort: Effort) -> list[Any]:
    """Return the pairs of each case."""
    made = []
    for number, (case, steps) in enumerate(effort.overhead):
        tell(f"overhead: {steps} steps")
        bench = make_bench(folder / f"overhead-{number}", case)
        warmup = 2
        _, facts = compare([Candidate("overhead", "overhead", bench)], rounds=1, steps=steps, warmup=warmup, tell=tell)
        found = facts["overhead"]
        made.append({"case": told(bench, found), "pairs": found["pairs"][warmup:]})
    return made


def machine() -> dict[str, Any]:
    """Return what it is measured on, and how busy that was before."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory_gib": memory, "load": os.getloadavg()[0]}


def measure(effort: Effort, command: str) -> dict[str, Any]:
    """Return all raw samples."""
    began, before = time.monotonic(), machine()
    with tempfile.TemporaryDirectory(prefix="fullft-benchmark-") as name:
        folder = Path(name)
        raw: dict[str, Any] = {
            "command": command, "date": datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "machine": before, "versions": {"Python": platform.python_version(), **{n: version(n) for n in LIBRARIES}},
            "text": "GSM8K, training split" if find_text().name.startswith("gsm8k") else "the text that is shipped",
            "ways": {name: way for name, way in NAMES.items() if not way.endswith("-plain")},
            "comparisons": comparisons(folder, effort), "overhead": overheads(folder, effort), "resume": None,
        }  # fmt: skip
        if effort.resume:
            from benchmarks import training_resume  # noqa: PLC0415  imports the worker

            tell("resume")
            raw["resume"] = training_resume.measure(
                folder / "resume", effort.resume, effort.places, effort.repeats, tell
            )
    return {**raw, "minutes": (time.monotonic() - began) / 60}


def gpu_raw() -> list[dict[str, Any]] | None:
    """Return what was measured on a GPU; None where nothing was."""
    return json.loads(GPU_RAW.read_text()) if GPU_RAW.is_file() else None


def written(text: str, raw: dict[str, Any]) -> str:
    """Return the page with both parts."""
    return with_part(
        with_part(text, PART, MODULE, page(raw)), GPU_PART, MODULE, training_gpu.lines(gpu_raw())
    )  # fmt: skip


def write(raw: dict[str, Any], page_file: Path, figure: Path) -> None:
    """Write page and figure from the samples."""
    text = page_file.read_text(encoding="utf-8") if page_file.is_file() else NEW_PAGE
    page_file.write_text(written(text, raw), encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed, so the figure stays: pip install -e '.[benchmarks]'", file=sys.stderr)
    else:
        draw(raw, figure)
    for bar in bars(raw):
        print("met    " if bar.met else "NOT MET", f"{bar.asked}: {bar.figure}")


def measure_gpu(quick: Path | None) -> int:
    """Measure the part for a GPU and write its samples and its page."""
    try:
        raw = training_gpu.measure(quick=quick is not None, tell=tell)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    file = quick / GPU_RAW.name if quick else GPU_RAW
    file.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    target = quick / PAGE.name if quick else PAGE
    text = target.read_text(encoding="utf-8") if target.is_file() else NEW_PAGE
    target.write_text(with_part(text, GPU_PART, MODULE, training_gpu.lines(raw)), encoding="utf-8")
    return int(any("error" in row for row in raw))


def is_current() -> bool:
    """Return whether the page is what would be written from the samples."""
    text = PAGE.read_text(encoding="utf-8")
    return written(text, json.loads(RAW.read_text())) == text


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write, or write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--page", action="store_true", help="write the page from the samples measured last")
    what.add_argument("--check", action="store_true", help="exit 1 where the page is not what --page would write")
    what.add_argument("--quick", type=Path, metavar="DIR", help="every way through the code, small, into DIR")
    parser.add_argument("--gpu", action="store_true", help="measure what takes a GPU instead")
    options = parser.parse_args(arguments)
    if options.gpu:
        return measure_gpu(options.quick)
    if options.check:
        if not is_current():
            print(f"{PAGE} is out of date: run `python -m {MODULE} --page`", file=sys.stderr)
            return 1
        return 0
    out = options.quick or RAW.parent
    if not options.page:
        raw = measure(QUICK if options.quick else FULL, f"python -m {MODULE}")
        (out / RAW.name).write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    raw = json.loads((out / RAW.name).read_text())
    write(raw, out / PAGE.name if options.quick else PAGE, (out if options.quick else DOCS) / FIGURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
