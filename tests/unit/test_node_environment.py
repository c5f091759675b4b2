"""What the node agent tells its workers by their environment."""

from __future__ import annotations

import os

import pytest

from fullft_cluster.runtime.node import worker_environment


def test_ranks_are_counted_through_the_nodes() -> None:
    environment = worker_environment(node_rank=2, local_rank=3, local_world_size=8, world_size=32)
    assert {name: environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")} == {
        "RANK": "19", "LOCAL_RANK": "3", "WORLD_SIZE": "32", "LOCAL_WORLD_SIZE": "8",
    }  # fmt: skip


@pytest.mark.parametrize(("cpus", "workers", "threads"), [(64, 8, "8"), (7, 2, "3"), (2, 4, "1")])
def test_workers_share_the_cpus_of_the_task(
    monkeypatch: pytest.MonkeyPatch, cpus: int, workers: int, threads: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert worker_environment(0, 0, workers, workers)["OMP_NUM_THREADS"] == threads


def test_threads_that_the_user_has_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert worker_environment(0, 0, 2, 2)["OMP_NUM_THREADS"] == "5"
