"""Runs on a real cluster: disturbed in every way that a cluster has, they end in the weights of an undisturbed run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kube_lab import Lab
from kube_run import SAVE_STEPS, STEPS, Place, Run

from fullft_cluster.resources import share

pytestmark = pytest.mark.kubernetes

KINDS = ("pytorchjob", "trainjob", "jobset", "job")


@pytest.fixture(scope="session")
def place(lab: Lab) -> Iterator[Place]:
    """The volume, which belongs to the user of the pods, and text to train on."""
    with tempfile.TemporaryDirectory(prefix="volume") as name:  # pytest's own directories are root's alone
        directory = Path(name)
        directory.chmod(0o755)
        place = Place(lab, directory, directory / "runs" / "train.jsonl")
        text = (share("configs") / "sample" / "train.jsonl").read_text().splitlines(keepends=True)
        place.data.write_text("".join(text[:300]))
        os.chown(place.runs, 1000, 1000)
        yield place


@pytest.fixture(scope="session")
def undisturbed(lab: Lab, place: Place) -> Iterator[Run]:
    """A run that nobody disturbs, whose weights the others have to have."""
    with lab.namespace() as namespace:
        run = place.apply("job", namespace, "undisturbed")
        run.finish()
        assert [line["cause"] for line in run.attempts] == ["done"]
        yield run


def same(run: Run, undisturbed: Run) -> None:
    """Assert that the run learnt what the undisturbed one did, bit for bit."""
    assert sorted(run.losses()) == list(range(1, STEPS + 1))
    assert run.losses() == undisturbed.losses()
    assert run.weights() == undisturbed.weights() != {}


@pytest.mark.parametrize("kind", KINDS)
def test_an_eviction_restarts_the_world_from_its_checkpoint(
    lab: Lab, place: Place, undisturbed: Run, namespace: str, kind: str
) -> None:
    run = place.apply(kind, namespace, f"evicted-{kind}")
    step = run.frozen_at(1, SAVE_STEPS + 2)
    victim = run.pod_of_node(1)
    lab.evict(namespace, victim["metadata"]["name"])
    run.thaw()
    first = run.attempt_ended(1)
    assert (first["cause"], first["decision"]) == ("operator_requeue", "requeue"), first
    assert first["committed_step"] >= step and first["seconds_lost"] == 0
    run.finish()
    assert [line["cause"] for line in run.attempts] == ["operator_requeue", "done"]
    same(run, undisturbed)
