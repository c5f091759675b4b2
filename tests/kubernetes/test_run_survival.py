"""Runs on a real cluster: disturbed in every way that a cluster has, they end in the weights of an undisturbed run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import kube_crowd
import pytest
from kube_lab import Lab
from kube_run import SAVE_STEPS, STEPS, Place, Run

pytestmark = pytest.mark.kubernetes

KINDS = ("pytorchjob", "trainjob", "jobset", "job")
GPU_NODES = ("gpu-0", "gpu-1", "gpu-2", "gpu-3")
STAND = SAVE_STEPS + 2
"""The step at which a run is disturbed: past a checkpoint, so that what is lost can be told from what is kept."""


def same(run: Run, undisturbed: Run) -> None:
    """Assert that the run learnt what the undisturbed one did, bit for bit, and that the cluster says so too."""
    assert sorted(run.losses()) == list(range(1, STEPS + 1))
    assert run.losses() == undisturbed.losses()
    assert run.weights() == undisturbed.weights() != {}
    run.ends_well()


# --- ways to be disturbed: each returns the cause that attempts.jsonl has to name
def evicted(run: Run) -> str:
    """A pod is evicted, as `kubectl drain` does it."""
    run.lab.evict(run.namespace, run.pod_of_node(1)["metadata"]["name"])
    return "operator_requeue"


def first_evicted(run: Run) -> str:
    """The pod of node 0 is evicted: the others' rendezvous, and of a PyTorchJob the master."""
    run.lab.evict(run.namespace, run.pod_of_node(0)["metadata"]["name"])
    return "operator_requeue"


def drained(run: Run) -> str:
    """A node is drained: cordoned, its pods evicted."""
    run.lab.drain(run.pod_of_node(1)["spec"]["nodeName"])
    return "operator_requeue"


def node_lost(run: Run) -> str:
    """A node dies without a word."""
    run.lab.lose(run.pod_of_node(1)["spec"]["nodeName"])
    return "node_fail"


def worker_killed(run: Run) -> str:
    """A worker is killed, as the kernel does when the host runs out of memory."""
    os.kill(run.workers()[-1], signal.SIGKILL)
    return "crash"


def outranked(run: Run) -> str:
    """Pods of a higher priority need the nodes: the scheduler preempts, and they leave again."""
    pods = kube_crowd.outrank(run.lab, run.namespace, nodes=3)
    run.wait_for(lambda: len(run.pods()) < 2)  # told to go
    run.thaw()
    run.attempt_ended(1)
    for pod in pods:
        run.lab.delete_pod(run.namespace, pod)
    return "preempted"


Disturbance = Callable[[Run], str]
GRACEFUL = (evicted, first_evicted, drained, outranked)
EVERY: tuple[Disturbance, ...] = (*GRACEFUL, node_lost, worker_killed)
AT_ONCE = {("pytorchjob", first_evicted), ("job", node_lost)}
"""What is tried in every run of the tests; the rest by `make nightly`."""


def cases() -> list[object]:
    """Return every kind with every disturbance."""
    return [
        pytest.param(
            kind,
            disturb,
            id=f"{kind}-{disturb.__name__}",
            marks=() if (kind, disturb) in AT_ONCE else pytest.mark.nightly,
        )
        for kind in KINDS
        for disturb in EVERY
    ]


@pytest.mark.parametrize(("kind", "disturb"), cases())
def test_the_world_restarts_and_learns_what_it_would_have_learnt(
    place: Place, undisturbed: Run, namespace: str, kind: str, disturb: Disturbance
) -> None:
    settings = ()
    if disturb is outranked:
        kube_crowd.priorities(place.lab)
        settings = ("kubernetes.priority_class=low",)
    run = place.apply(kind, namespace, f"{disturb.__name__.replace('_', '-')}-{kind}", *settings)
    step = run.frozen_at(1, STAND)
    before = {pod["metadata"]["uid"] for pod in run.pods()}
    lost = run.pod_of_node(1)["spec"]["nodeName"]
    cause = disturb(run)
    run.thaw()
    first = run.attempt_ended(1)
    assert first["cause"] == cause, first
    if disturb in GRACEFUL:
        assert first["committed_step"] >= step and first["seconds_lost"] == 0, "a checkpoint was made before the end"
    else:
        assert first["committed_step"] == SAVE_STEPS and first["seconds_lost"] > 0
    run.frozen_at(2, STAND + 2)
    after = {pod["metadata"]["uid"] for pod in run.pods()}
    if disturb is worker_killed:
        assert after == before, "the world starts again in the pods that are there"
    else:
        assert len(after & before) == 1, "the pod that nobody disturbed is not made anew"
    run.thaw()
    final = run.finish()
    assert [line["cause"] for line in run.attempts] == [cause, "done"]
    if disturb is node_lost:
        assert final["excluded_nodes"] == [lost] and lost not in run.attempts[1]["nodes"]
    same(run, undisturbed)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_node_that_comes_back_is_not_used_again(
    lab: Lab, place: Place, undisturbed: Run, namespace: str, kind: str
) -> None:
    run = place.apply(kind, namespace, f"returned-{kind}")
    run.frozen_at(1, STAND)
    used = [run.pod_of_node(rank)["spec"]["nodeName"] for rank in range(2)]
    spare = sorted(set(GPU_NODES) - set(used))
    for node in spare:
        lab.cordon(node)
    lab.lose(used[1])
    run.thaw()
    first = run.attempt_ended(1)
    assert (first["cause"], first["decision"]) == ("node_fail", "requeue_without_node")
    run.wait_for(lambda: any("nodeName" not in pod["spec"] for pod in run.pods()))  # the lost pod is released
    lab.bring_back(used[1])
    run.wait_for(lambda: used[1] in run.json("control/pods/node-1.json").get("node", ""))  # the scheduler took it again
    run.wait_for(lambda: any("nodeName" not in pod["spec"] for pod in run.pods()))  # and it is refused
    lab.cordon(spare[0], cordoned=False)
    run.finish()
    assert used[1] not in run.attempts[1]["nodes"] and spare[0] in run.attempts[1]["nodes"]
    assert [line["cause"] for line in run.attempts] == ["node_fail", "done"]
    same(run, undisturbed)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_kueue_preempts_resumes_when_there_is_room(
    lab: Lab, place: Place, undisturbed: Run, kind: str
) -> None:
    with lab.namespace(queue_gpus=4) as namespace:
        queue = ("kubernetes.queue=training", "kubernetes.queue_priority=low")
        run = place.apply(kind, namespace, f"queued-{kind}", *queue)
        run.frozen_at(1, STAND)
        kube_crowd.kueue_job(lab, namespace, "urgent", gpus=2)
        run.wait_for(lambda: not run.pods())  # all are told to go
        run.thaw()
        first = run.attempt_ended(1)
        assert (first["cause"], first["seconds_lost"], first["exit_codes"]) == ("preempted", 0, [75] * 4), first
        run.finish()
        assert [line["cause"] for line in run.attempts] == ["preempted", "done"]
        same(run, undisturbed)


def another_supervisor(run: Run, before: dict[str, Any]) -> dict[str, Any]:
    """Wait until a supervisor runs that is not the one before, and return its pod."""

    def found() -> list[dict[str, Any]]:
        running = [pod for pod in run.pods("supervisor") if pod["status"]["phase"] == "Running"]
        return [pod for pod in running if pod["metadata"]["uid"] != before["metadata"]["uid"]]

    run.wait_for(found)
    return found()[0]


@pytest.mark.nightly
def test_the_budget_and_the_watch_outlive_the_supervisors_pod(
    lab: Lab, place: Place, undisturbed: Run, namespace: str
) -> None:
    run = place.apply("pytorchjob", namespace, "watched")
    run.frozen_at(1, STAND)
    pods = {pod["metadata"]["uid"] for pod in run.pods()}
    for node in GPU_NODES:
        lab.cordon(node)
    (before,) = run.pods("supervisor")
    lab.evict(namespace, before["metadata"]["name"])
    second = another_supervisor(run, before)
    assert second["spec"]["nodeName"] == "cpu-0"
    lab.lose("cpu-0")  # its pod is told to go, and will for ever be going
    for node in GPU_NODES:
        lab.cordon(node, cordoned=False)
    another_supervisor(run, second)
    worker_killed(run)
    run.thaw()
    first = run.attempt_ended(1)
    assert (first["attempt"], first["cause"], first["committed_step"]) == (1, "crash", SAVE_STEPS)
    run.frozen_at(2, STAND)
    assert {pod["metadata"]["uid"] for pod in run.pods()} == pods, "the world starts again in the pods that are there"
    run.thaw()
    run.finish()
    assert [line["cause"] for line in run.attempts] == ["crash", "done"]
    assert run.json("run.json")["history"]["failures"] == 0, "a new checkpoint clears the count"
    same(run, undisturbed)
