"""A run that goes on with other GPUs: planned anew, and what is learnt stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from fullft_cluster.cli.target import DirectoryTarget
from fullft_cluster.config_load import read_config, resolve
from fullft_cluster.errors import UsageError
from fullft_cluster.job import make_job
from fullft_cluster.model import load_model
from fullft_cluster.plan import Plan
from fullft_cluster.planner import Data, make_plan
from fullft_cluster.relayout import MATHEMATICS, indivisible, origins_in, relayout, write
from fullft_cluster.render import render
from fullft_cluster.rundir import RunDir


def make_run(path: Path, **flags: Any) -> RunDir:
    """Return a run directory as submit leaves it."""
    given = {"model": "7b", "backend": "slurm", "resources.nodes": 1, "resources.gpus_per_node": 8, **flags}
    resolved = resolve(given, [], None)
    plan = make_plan(resolved.config, load_model("7b"), resolved.cluster, Data(rows=20_000, text_bytes=40_000_000))
    run = RunDir(path)
    run.make()
    for name, text in render(make_job(resolved, plan, path, "/usr/bin/python3")).files.items():
        (run.path / name).write_text(text)
    run.update_run(attempt=3, backend="slurm", state="failed", world_size=8)
    return run


def test_what_is_learnt_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **{"slurm.gpus_per_node": "a100:8"})
    before, config, script = Plan.from_json(run.plan.read_bytes()), run.config.read_text(), run.path / "job.sbatch"
    old_script = script.read_text()
    kept = run.path / write(run, relayout(run, 2, None, None))
    plan = Plan.from_json(run.plan.read_bytes())
    assert (plan.nodes, plan.gpus_per_node, plan.gpus) == (2, 8, 16)
    assert {name: getattr(plan, name) for name in MATHEMATICS} == {name: getattr(before, name) for name in MATHEMATICS}
    assert plan.time.total_steps == before.time.total_steps
    assert plan.micro_batch_size * plan.gradient_accumulation_steps * 16 == before.global_batch_size
    assert json.loads(run.deepspeed.read_text())["train_batch_size"] == before.global_batch_size
    assert "#SBATCH --nodes=2" in script.read_text()
    assert run.read_run()["world_size"] == 16
    assert [(kept / name).read_text() for name in ("config.yaml", "job.sbatch")] == [config, old_script]
    assert Plan.from_json((kept / "plan.json").read_bytes()) == before
    # Said once more, it is the same; said back, it is the old plan but for what has been made fast.
    again = relayout(run, 2, 8, None).rendered.files
    assert again == {name: (run.path / name).read_text() for name in again}
    assert relayout(run, 1, 8, None).plan.micro_batch_size == before.micro_batch_size


def test_the_configuration_says_where_each_value_came_from(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **{"train.learning_rate": 3e-5, "slurm.gpus_per_node": "a100:8"})
    write(run, relayout(run, None, 4, None))
    config = read_config(run.config)
    assert (config.resources.nodes, config.resources.gpus_per_node, config.slurm.gpus_per_node) == (1, 4, "a100:4")
    assert config.train.learning_rate == 3e-5
    origins = origins_in(run.config.read_text())
    assert (origins["model"], origins["resources.gpus_per_node"]) == ("flag", "resume")
    assert "train.seq_len" not in origins
    assert yaml.safe_load(run.config.read_text())["train"]["global_batch_size"] == 64


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_does(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match=r"global batch of 64 sequences.* 24 GPUs.*Take 16 or 32 GPUs"):
        relayout(run, 3, 8, None)
    assert {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before
    problem = indivisible(6, 7)
    assert problem and problem.fix == "Take 6 GPUs."


def test_a_micro_batch_of_the_users_stays_where_it_divides(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **{"resources.micro_batch_size": 4, "train.global_batch_size": 64})
    assert relayout(run, 2, 8, None).plan.micro_batch_size == 4
    assert relayout(run, 4, 8, None).plan.micro_batch_size in (1, 2)


def test_fsdp_stays_fsdp(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **{"resources.engine": "fsdp"})
    laid = relayout(run, 2, 8, None)
    assert laid.plan.engine == "fsdp"
    assert "deepspeed.json" not in laid.rendered.files


def test_only_a_run_that_has_ended_is_planned_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    target = DirectoryTarget(run, Mock(status=Mock(return_value=Mock(state="running"))))
    with pytest.raises(UsageError, match=r"has not ended \(running\)"):
        target.relayout(2, None)
    assert Plan.from_json(run.plan.read_bytes()).gpus == 8
    target = DirectoryTarget(run, Mock(status=Mock(return_value=Mock(state="cancelled"))))
    target.relayout(2, None)
    assert "2 nodes with 8 each" in capsys.readouterr().err
    assert Plan.from_json(run.plan.read_bytes()).gpus == 16
