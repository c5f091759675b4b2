"""The job of a plan that is laid on nodes that exist: partition, feature and time limit are those of its site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inventory_fixtures import raw, slurm
from msgspec.structs import replace

from fullft_cluster.config_load import resolve
from fullft_cluster.errors import UsageError
from fullft_cluster.inventory import Inventory
from fullft_cluster.inventory.reading import from_file, from_slurm
from fullft_cluster.job import Job, make_job, prepare_time, slurm_attempt
from fullft_cluster.plan import Interval
from fullft_cluster.road import to_plan

FLAGS = {"model": "7b", "backend": "slurm", "resources.gpus": 8, "train.max_steps": 1000}


def job_on(inventory: Inventory | None, hours: float | None = None, **flags: Any) -> tuple[Job, str]:
    """The job, and what is said of its time limit; `hours` in place of the forecast."""
    resolved = resolve(FLAGS | {key.replace("__", "."): value for key, value in flags.items()}, [], None)
    planned = to_plan(resolved, inventory)
    forecast = Interval(low=0.8 * hours, expected=hours, high=1.25 * hours) if hours else None
    plan = replace(planned.plan, time=replace(planned.plan.time, hours=forecast))
    job = make_job(planned.resolved, plan, Path("/runs/x"), "/usr/bin/python3", planned.site)
    return job, slurm_attempt(resolved.config, plan, planned.site).sentence


def test_partition_and_feature_of_the_site_and_the_users_own_before_them() -> None:
    inventory = slurm()
    job, _ = job_on(inventory)
    assert job.slurm is not None
    assert (job.slurm.partition, job.slurm.constraint, job.slurm.gpus_per_node) == ("gpu", "a100_80gb", "a100:8")
    own, _ = job_on(inventory, slurm__partition="debug", slurm__constraint="dgx", slurm__prepare_partition="cpu")
    assert own.slurm is not None
    assert (own.slurm.partition, own.slurm.constraint) == ("debug", "dgx")


def test_the_time_limit_is_the_forecasts_within_the_partitions() -> None:
    short, said = job_on(slurm(), hours=10)
    assert short.slurm is not None and short.slurm.time.startswith("14:")  # 1.1 x 12.5 h, start-up and lead
    assert "high end, 12 h" in said
    long, said = job_on(slurm(), hours=100)
    assert long.slurm is not None and long.slurm.time == "2-00:00:00"
    assert "--time=2-00:00:00 is the limit of partition gpu; the run takes 80 h to 125 h, so 1 to 2 requeues" in said


def test_without_an_inventory_a_day_at_most() -> None:
    job, said = job_on(None, hours=100)
    assert job.slurm is not None and job.slurm.time == "24:00:00"
    assert "a day, as no limit is known" in said
    unknown, said = job_on(from_file(raw("22.05", "sinfo.json"), "x"), hours=100)
    assert unknown.slurm is not None and unknown.slurm.time == "24:00:00"


def test_a_given_time_is_kept_and_what_it_means_is_said() -> None:
    job, said = job_on(slurm(), hours=100, slurm__time="12:00:00")
    assert job.slurm is not None and job.slurm.time == "12:00:00"
    assert "--time=12:00:00, as given: the run takes 80 h to 125 h, so 6 to 10 requeues" in said


def test_a_given_time_beyond_the_partitions_limit_is_refused_with_both() -> None:
    with pytest.raises(UsageError) as caught:
        job_on(slurm(), slurm__time="3-00:00:00")
    (problem,) = caught.value.problems
    text = "slurm.time: 3-00:00:00 is longer than 2-00:00:00, the limit of partition gpu. Write at most 2-00:00:00, or"
    assert str(problem).startswith(text)


def test_the_preparation_has_to_end_within_its_partition_too() -> None:
    with pytest.raises(UsageError, match=r"slurm.prepare_time: 04:00:00 is longer than 00:30:00"):
        job_on(slurm(), slurm__partition="debug", slurm__prepare_time="04:00:00")
    assert job_on(slurm(), slurm__partition="debug", slurm__prepare_time="04:00:00", slurm__prepare_partition="cpu")
    assert job_on(slurm(), slurm__partition="debug", slurm__prepare_time="00:20:00")


def test_the_preparations_default_follows_its_partition() -> None:
    for partition, expected in (("debug", "00:30:00"), ("gpu", "04:00:00")):
        resolved = resolve({"model": "7b", "backend": "slurm", "slurm.partition": partition}, [], None)
        site = to_plan(resolved, slurm()).site
        assert prepare_time(resolved.config, site) == expected
    assert prepare_time(resolved.config, None) == "04:00:00"


def test_a_partition_that_ends_jobs_before_a_checkpoint_is_written_is_refused() -> None:
    text = (raw("22.05", "nodes.txt") + raw("22.05", "partitions.txt")).decode()
    tiny = from_slurm(text.replace("MaxTime=2-00:00:00", "MaxTime=00:01:00"))
    with pytest.raises(UsageError, match=r"slurm.time: 00:01:00, the limit of partition gpu, is not longer than the"):
        job_on(tiny)
