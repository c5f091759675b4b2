"""Measures how fast data is prepared, beside `datasets.map` with the usual function, and writes it into docs/data.md.

python -m benchmarks.prepare_throughput         measures (minutes); writes benchmarks/data/prepare.json, then the page
python -m benchmarks.prepare_throughput --page  writes the page from the samples that were measured last

Each case runs in a process of its own; what is timed begins after the imports, with the file of rows, and ends with
what is on disk. Rounds alternate between the cases, so that all see the same neighbours. CPU seconds count all
processes, so other work on the machine changes them less than the seconds on the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.marked_page import with_part
from benchmarks.tables import table

ROOT = Path(__file__).parents[1]
PAGE, RAW = ROOT / "docs" / "data.md", ROOT / "benchmarks" / "data" / "prepare.json"
MODULE = "benchmarks.prepare_throughput"
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CASES = {
    "map": '`datasets.map`, `tokenizer(batch["text"])`',
    "map-pack": "the same, then `trl.pack_dataset`",
    "text": "ours, text",
    "completion": "ours, prompt and completion",
    "chat": "ours, chats",
}
START = "import sys; from benchmarks.prepare_case import main; main(*sys.argv[1:])"
"""Not `-m`: the processes that tokenise import the main module again, and with it what only the cases need."""
LIBRARIES = ("tokenizers", "datasets", "transformers", "trl", "pyarrow", "numpy")


def find_rows() -> tuple[str, list[tuple[str, str]]]:
    """Return (name of the text, questions with their answers): GSM8K where it lies beside the checkout."""
    for folder in (os.environ.get("FULLFT_CLUSTER_SHARED"), ROOT.parent / "shared"):
        if folder and (path := Path(folder) / "data" / "gsm8k_train.jsonl").is_file():
            rows = [json.loads(line) for line in path.open(encoding="utf-8")]
            return "GSM8K, training split", [(row["question"], row["answer"]) for row in rows]
    lines = (ROOT / "configs" / "sample" / "train.jsonl").open(encoding="utf-8")
    texts = [json.loads(line)["text"] for line in lines]
    return "the text that is shipped", [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]


def write_rows(directory: Path, megabytes: float) -> str:
    """Write so much text three times: as text, as prompt and completion, as chats. Return the text's name."""
    name, pairs = find_rows()
    size = sum(len(question) + len(answer) for question, answer in pairs)
    copies = max(1, round(megabytes * 1e6 / size))
    shapes: dict[str, Callable[[str, str], dict[str, Any]]] = {
        "text": lambda question, answer: {"text": f"{question}\n{answer}"},
        "completion": lambda question, answer: {"prompt": f"{question}\n", "completion": answer},
        "chat": lambda question, answer: {
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        },
    }
    for kind, shape in shapes.items():
        lines = [json.dumps(shape(question, answer)) + "\n" for question, answer in pairs]
        with (directory / f"{kind}.jsonl").open("w", encoding="utf-8") as file:
            for _ in range(copies):
                file.writelines(lines)
    (directory / "chat.jinja").write_text(TEMPLATE)
    return f"{name}, {copies} times"


# --- measuring, and the page


def measure(rounds: int, megabytes: float) -> dict[str, Any]:
    """Return the samples of every case, and what they were measured on."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        text = write_rows(Path(scratch), megabytes)
        environment = {**os.environ, "HF_DATASETS_CACHE": scratch, "HF_HUB_OFFLINE": "1"}
        for number in range(rounds):
            for name in CASES:
                command = [sys.executable, "-c", START, name, scratch]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
                samples[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"round {number + 1}: {name}: {samples[name][-1]}", file=sys.stderr)
    return {
        "text": text, "cores": len(os.sched_getaffinity(0)), "load_before": load,
        "processor": _processor(), "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES}, "samples": samples,
    }  # fmt: skip


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def part(found: dict[str, Any]) -> list[str]:
    """Return the part of the page."""
    first = found["samples"]["map"]
    rows = []
    for case, name in CASES.items():
        samples = found["samples"][case]
        per_core = [sample["tokens"] / sample["cpu_seconds"] for sample in samples]
        together = [sample["tokens"] / sample["seconds"] for sample in samples]
        usual = [sample["tokens"] / sample["cpu_seconds"] for sample in first]
        times = statistics.median(mine / other for mine, other in zip(per_core, usual, strict=True))
        ends = f"{thousands(min(per_core))} to {thousands(max(per_core))}"
        middle = [thousands(statistics.median(values)) for values in (per_core, together)]
        rows.append((name, middle[0], ends, f"{times:.2f}", middle[1]))
    libraries = ", ".join(f"{name} {number}" for name, number in found["libraries"].items())
    return [
        f"{found['text']}: {first[0]['tokens'] / 1e6:.1f} million tokens of the sample tokenizer (2,048 tokens), from",
        f"the file of rows to what is on disk. Medians of {len(first)} rounds in which all cases took turns, on",
        f"{found['cores']} cores ({found['processor']}), load before the start {found['load_before']:.1f}; Python",
        f"{found['python']}, {libraries}. A core's figure is tokens over CPU seconds of all processes.",
        "",
        *table(("", "tokens/s a core", "least to most", "times `datasets.map`", "tokens/s on the clock"), rows),
    ]


def thousands(value: float) -> str:
    """Return a speed: ``612k``."""
    return f"{value / 1e3:,.0f}k"


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=16.0, help="of text")
    parser.add_argument("--page", action="store_true", help="write the page from the last samples")
    options = parser.parse_args()
    if not options.page:
        RAW.write_text(json.dumps(measure(options.rounds, options.megabytes), indent=1) + "\n")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_part(page, "throughput", MODULE, part(json.loads(RAW.read_text()))), encoding="utf-8")


if __name__ == "__main__":
    main()
