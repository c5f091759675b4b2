"""The benchmark of training: figures come from raw samples, the page from the figures, all candidates see one text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import marked_page, training_page, training_stats  # noqa: E402
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
