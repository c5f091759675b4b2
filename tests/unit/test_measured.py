"""Calibration: a run's metrics overwrite the prior for its cluster, and the next plan says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fullft_cluster.config_load import resolve, to_yaml
from fullft_cluster.errors import UsageError
from fullft_cluster.measured import calibrate_from, load_measured, measured_path
from fullft_cluster.model import load_model
from fullft_cluster.plan import Plan
from fullft_cluster.planner import Data, make_plan
from fullft_cluster.planner.calibration import WARM_UP
from fullft_cluster.road import to_plan
from fullft_cluster.rundir import RunDir


def make_run(where: Path, slowdown: float, lines: int = 20, **flags: Any) -> tuple[RunDir, Plan]:
    """Write a run directory whose steps took `slowdown` times the forecast, the first ones ten times as long."""
    resolved = resolve({"model": "7b", "resources.gpus": 8, **flags}, [], None)
    plan = make_plan(resolved.config, load_model("7b"), resolved.cluster, Data())
    run = RunDir(where)
    run.make()
    run.plan.write_bytes(plan.to_json())
    run.config.write_text(to_yaml(resolved))
    speed = plan.global_batch_size * plan.seq_len / (plan.time.step_seconds.expected * slowdown)
    with run.metrics.open("w") as file:
        for attempt in (1, 2):
            for line in range(lines):
                # 2 % up and down around the speed; the warm-up is not to count.
                now = speed / 10 if line < WARM_UP else speed * (1 + 0.02 * (-1) ** line)
                file.write(json.dumps({"step": line, "attempt": attempt, "tokens_per_second": now}) + "\n")
        file.write('{"step": 41, "attem')  # cut off when the node went down
    return run, plan


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def test_the_next_plan_uses_what_was_measured(home: Path) -> None:
    run, before = make_run(home / "runs" / "first", slowdown=1.4)
    measured, path = calibrate_from(run)
    assert measured.slowdown == pytest.approx(1.4, rel=0.03)
    assert measured.spread < 0.05 and measured.steps == 2 * (20 - WARM_UP)
    assert path == home / "config" / "fullft-cluster" / "a100-80gb.measured.json"
    after = to_plan(resolve({"model": "7b", "resources.gpus": 8}, [], None)).plan
    assert after.time.step_seconds.expected == pytest.approx(1.4 * before.time.step_seconds.expected, rel=0.03)
    assert "run first" in after.time.basis and "measured" in after.time.basis
    assert any("run first" in sentence for sentence in after.why)
    assert next(q.origin for q in after.quantities if q.name == "step_seconds") == "measured"
    wide, narrow = (x.time.step_seconds.high / x.time.step_seconds.expected for x in (before, after))
    assert narrow < wide, "the interval narrows"


def test_another_model_trusts_the_shape_and_widens(home: Path) -> None:
    run, _ = make_run(home / "runs" / "first", slowdown=1.4)
    calibrate_from(run)
    same, other = (to_plan(resolve({"model": m, "resources.gpus": 8}, [], None)).plan for m in ("7b", "13b"))
    width = {plan.model.name: plan.time.step_seconds.high / plan.time.step_seconds.expected for plan in (same, other)}
    assert width["13b"] > width["7b"]
    offloaded = to_plan(resolve({"model": "7b", "resources.offload": "optimizer"}, [], None)).plan
    assert "prior" in offloaded.time.basis, "nothing was measured with offload"


def test_a_second_calibration_replaces_the_first(home: Path) -> None:
    for name, slowdown in (("first", 1.4), ("second", 1.1)):
        run, _ = make_run(home / "runs" / name, slowdown)
        calibrate_from(run)
    (only,) = load_measured("a100-80gb")
    assert (only.run, round(only.slowdown, 1)) == ("second", 1.1), "it is measured against the uncalibrated forecast"


def test_a_profile_of_ones_own_keeps_it_beside_itself(home: Path) -> None:
    profile = home / "site.yaml"
    profile.write_text(Path("configs/clusters/a100-80gb.yaml").read_text())
    run, _ = make_run(home / "runs" / "first", 2.0, cluster=str(profile))
    _, path = calibrate_from(run)
    assert path == home / "site.measured.json"
    assert to_plan(resolve({"model": "7b", "cluster": str(profile)}, [], None)).plan.time.basis.startswith(
        "34 steps of run first, measured"
    )
    assert "prior" in to_plan(resolve({"model": "7b"}, [], None)).plan.time.basis


def test_what_no_gpu_can_do_is_refused(home: Path) -> None:
    run, _ = make_run(home / "runs" / "wonder", 0.01)
    with pytest.raises(UsageError, match="of what 8 x a100-80gb can do"):
        calibrate_from(run)
    assert load_measured("a100-80gb") == ()


@pytest.mark.parametrize(
    "line",
    ["[1]", "\udcff", '{"attempt": [1]}', '{"tokens_per_second": 1e999}', '{"tokens_per_second": NaN}',
     '{"tokens_per_second": true}', '{"tokens_per_second": null}'],
)  # fmt: skip
def test_lines_that_measure_nothing_are_left_out(home: Path, line: str) -> None:
    run, _ = make_run(home / "runs" / "odd", slowdown=1.4)
    run.metrics.write_bytes(run.metrics.read_bytes() + f"\n{line}".encode(errors="surrogateescape") * 100)
    assert calibrate_from(run)[0].slowdown == pytest.approx(1.4, rel=0.03)


def test_nothing_is_written_that_the_next_plan_could_not_read(home: Path) -> None:
    run, _ = make_run(home / "runs" / "slow", slowdown=1e6)
    with pytest.raises(UsageError, match="x the forecast"):
        calibrate_from(run)
    assert load_measured("a100-80gb") == ()


def test_too_few_steps_and_damaged_files_are_said(home: Path) -> None:
    run, _ = make_run(home / "runs" / "short", 1.0, lines=WARM_UP + 1)
    with pytest.raises(UsageError, match="measured steps"):
        calibrate_from(run)
    path = measured_path("a100-80gb", {"XDG_CONFIG_HOME": str(home / "config")})
    path.parent.mkdir(parents=True)
    path.write_text('[{"engine": "deepspeed"}]')
    with pytest.raises(UsageError, match="not what calibrate writes"):
        to_plan(resolve({"model": "7b"}, [], None))
    run.plan.unlink()
    with pytest.raises(UsageError, match="has no plan"):
        calibrate_from(run)


def test_a_measurement_for_another_gpu_says_nothing(home: Path) -> None:
    run, _ = make_run(home / "runs" / "first", 1.4)
    measured, path = calibrate_from(run)
    path.write_text(json.dumps([{**json.loads(path.read_text())[0], "gpu": "h100-80gb"}]))
    assert replace(measured, gpu="h100-80gb") in load_measured("a100-80gb")
    assert "prior" in to_plan(resolve({"model": "7b"}, [], None)).plan.time.basis
