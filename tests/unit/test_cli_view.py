"""How runs are shown where the output is not a terminal's: a line a run, nothing cut off, nothing filled up."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fullft_cluster.cli.view import print_runs, print_status
from fullft_cluster.status import Status


def run(name: str, reason: str, **changes: Any) -> Status:
    values: dict[str, Any] = {field.name: None for field in msgspec.structs.fields(Status)}
    counts = {"attempt": 1, "restarts": 0, "nodes": [], "attempts": []}
    known = {"name": name, "run_dir": f"/runs/{name}", "backend": "kubernetes", "state": "failed", "reason": reason}
    return Status(**(values | counts | known | changes))


def test_a_run_is_one_line_without_trailing_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    long = "data preparation: " + "x" * 200
    print_runs([run("one", long), run("two", "first\nsecond"), run("three", "")])
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "name" and header.split()[-1] == "reason"
    assert [line.split()[0] for line in lines] == ["one", "two", "three"]
    assert lines[0].endswith(long) and lines[1].endswith("first second")
    assert not [line for line in (header, *lines) if line != line.rstrip()]


def test_a_run_shows_its_last_evaluation_and_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    print_status(run("one", "", step=4, eval_loss=1.75, best_eval_loss=1.5, best_step=2, best="/runs/one/best"))
    said = capsys.readouterr().out
    assert "step 4/? | evaluation loss 1.7500" in said
    assert "best            evaluation loss 1.5000 at step 2 (/runs/one/best)" in said
