"""The benchmark of training: figures come from raw samples, the page from the figures, all candidates see one text."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import marked_page, training, training_gpu, training_page, training_stats  # noqa: E402
from benchmarks.gpu_memory import planned_gib  # noqa: E402
from benchmarks.training_case import find_text, texts  # noqa: E402

CASE = {
    "layers": 1, "hidden": 32, "seq_len": 128, "processes": 2, "micro_batch_size": 1, "accumulation": 1,
    "precision": "fp32", "activation_checkpointing": False, "parameters": 2_500_000, "threads": 1,
}  # fmt: skip


def raw(ours, padded, sft, pairs):
    """Return samples as training.json has them: (seconds, tokens, steps) a round."""
    names = {training_page.OURS: "ours", "Trainer, padded": "padded", "TRL": "sft"}
    compared = {
        "title": "Two", "case": CASE, "samples": dict(zip(names, (ours, padded, sft), strict=True)), "ways": names,
    }  # fmt: skip
    resume = {
        "places": [100, 10_000],
        "samples": {
            "100": [{"start": 5.0 + i / 10, "engine": 0.5, "resumed": 0.1} for i in range(5)],
            "10000": [{"start": 5.05 + i / 10, "engine": 0.5, "resumed": 0.1} for i in range(5)],
        },
    }
    machine = {"cpu": "a CPU", "cores": 2, "memory_gib": 24.0, "load": 0.1}
    return {
        "command": "run", "date": "today", "minutes": 3.0, "machine": machine, "versions": {"torch": "1"}, "text": "x",
        "ways": names, "comparisons": [compared], "overhead": [{"case": CASE, "pairs": pairs}], "resume": resume,
        "gpu": None,
    }  # fmt: skip


def test_ratios_are_taken_within_rounds():
    """The machine is three times slower in the second round; the ratio does not notice, that of medians would."""
    ours = [(1.0, 400, 2), (3.0, 400, 2), (1.0, 400, 2)]
    other = [(2.0, 100, 2), (6.0, 100, 2), (6.0, 100, 2)]
    assert training_stats.ratio(ours, other) == (8.0, 8.0, 24.0)
    assert training_stats.speeds(ours) == [400, 400 / 3, 400]
    assert training_stats.step_seconds(other) == [1.0, 3.0, 3.0]
    with pytest.raises(ValueError, match="shorter"):
        training_stats.ratio(ours, other[:2])


def test_overhead_is_held_against_the_steps_around_it():
    """A machine that gets slower and slower: against the bare step before alone, drift would count as overhead."""
    pairs = [(1.01 * (10 + 2 * i), 10 + 2 * i + 1.0) for i in range(100)]
    found = training_stats.overhead(pairs)
    assert found.share == pytest.approx(0.01)
    assert found.low <= found.share <= found.high
    assert found.steps == 99
    naive = [ours / bare for ours, bare in zip([p[0] for p in pairs[1:]], [p[1] for p in pairs], strict=False)]
    assert min(naive) > 1.01


def test_chance_tells_noise_from_a_difference():
    assert training_stats.chance([1, 2, 3, 4, 5], [1.5, 2.5, 3.5, 4.5, 2]) > 0.5
    assert training_stats.chance([1, 1.1, 1.2, 1.1, 1], [2, 2.1, 2.2, 2.1, 2]) == pytest.approx(2 / 252)
    many = training_stats.chance([i / 10 for i in range(20)], [i / 10 + 5 for i in range(20)])
    assert many < 0.001, "drawn, as there are too many arrangements to go through"


def test_bars_follow_from_the_samples():
    fast, slow = [(1.0, 3000, 1)] * 3, [(1.0, 900, 1)] * 3
    made = raw(fast, slow, [(1.0, 3000, 1), (1.0, 2900, 1), (1.0, 3100, 1)], [(1.01, 1.0)] * 30)
    assert [bar.met for bar in training_page.bars(made)] == [True, True, True, True]
    worse = raw(fast, [(1.0, 1100, 1)] * 3, [(1.0, 3010, 1)] * 3, [(1.03, 1.0)] * 30)
    assert [bar.met for bar in training_page.bars(worse)] == [False, False, False, True]
    for sample in worse["resume"]["samples"]["10000"]:
        sample["start"] += 2
    assert not training_page.bars(worse)[3].met
    text = "\n".join(training_page.page(worse))
    assert text.count("**not met**") == 4
    assert "2.5 million parameters" in text
    assert "+3.0 %" in text


def test_a_part_of_a_page_is_replaced_and_the_rest_stays():
    page = marked_page.with_part("# Mine\n\nWritten by hand.\n", "training", "m", ["one"])
    page += "\nBelow.\n"
    again = marked_page.with_part(page, "training", "m", ["two", "lines"])
    assert again == page.replace("one", "two\nlines")
    both = marked_page.with_part(again, "prepare", "m", ["other"])
    assert marked_page.with_part(both, "training", "m", ["one"]).endswith(both[len(again) - 1 :])
    with pytest.raises(ValueError, match="missing"):
        marked_page.with_part(page.replace("<!-- end of training -->", ""), "training", "m", ["two"])


def test_the_shipped_text_serves_where_there_is_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("FULLFT_CLUSTER_SHARED", str(tmp_path))
    (tmp_path / "data").mkdir()
    mine = tmp_path / "data" / "gsm8k_train.jsonl"
    mine.write_text('{"question": "How many?", "answer": "Two."}\n' * 3)
    assert find_text() == mine
    assert list(texts(mine, 2)) == ["How many?\nTwo."] * 2
    mine.unlink()
    found = find_text()
    assert next(texts(found, 1)), "the text beside the checkout, or the shipped one"


def test_mfu_is_the_share_of_the_peak_of_the_gpu_that_was_measured():
    """One layer more is 12 h^2-odd weights more: FLOPs follow 6 N + 6 L s q, the peak the table of GPUs."""
    case = training_gpu.GpuCase()
    weights = 4 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096 + 32000 * 4096
    flops = 6 * (weights + 4 * 4096 * 4096)
    row = {
        "case": json.loads(case.to_json()), "gpu": "NVIDIA A100-SXM4-80GB", "memory_gib": 79.1, "allocated_gib": 40.0,
        "attention": "flash_attention_2",
        "samples": {"full": [(1.0, 20_000, 20_000)] * 3, "packed": [(1.0, 18_000, 20_000)] * 3,
                    "padded": [(1.0, 2_000, 20_000)] * 3},
    }  # fmt: skip
    assert training_gpu.mfu(row).median == pytest.approx(20_000 * flops / 312e12, rel=1e-3)
    assert training_gpu.mfu({**row, "gpu": "NVIDIA Unheard Of"}) is None
    text = "\n".join(training_gpu.lines([row, {"case": row["case"], "error": "out of memory"}]))
    assert "9.00 (9.00 to 9.00)" in text
    assert "out of memory" in text
    assert "None yet" in "\n".join(training_gpu.lines(None))


def test_cases_for_a_gpu_fit_one_of_80_gib():
    cases = training_gpu.all_cases()
    assert len({case.to_json() for case in cases}) == len(cases)
    assert all(20 < planned_gib(case.memory) < 74 for case in cases)
    assert training_gpu.GpuCase.from_json(cases[0].to_json()) == cases[0]


def test_the_page_is_what_the_samples_say():
    assert training.is_current(), "run `python -m benchmarks.training --page`"
    figure = (training.DOCS / training.FIGURE).read_text(encoding="utf-8")
    assert "<dc:date>" not in figure
    assert f"]({training.FIGURE})" in training.PAGE.read_text(encoding="utf-8")
