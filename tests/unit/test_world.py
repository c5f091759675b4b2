"""The pods of one attempt, watched from outside: when it is over, who is lost, who is told to hurry or taken away."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from fullft_cluster.kubernetes_api import Watched
from fullft_cluster.rundir import RunDir, write_json
from fullft_cluster.runtime import world as module
from fullft_cluster.runtime.meeting import Meeting, Opened, Ticket
from fullft_cluster.runtime.world import Cluster, Vigil, World


class Clock:
    """This process's clock, which a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Objects:
    """A watch's view of the cluster, as a test sets it."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}

    def items(self) -> dict[str, dict[str, Any]]:
        return dict(self.objects)

    def last(self, uid: str) -> dict[str, Any] | None:
        return next((one for one in self.objects.values() if one["metadata"]["uid"] == uid), None)


def pod(rank: int, *, ready: bool = True, uid: str | None = None, **metadata: str) -> dict[str, Any]:
    """Return the object of a node's pod."""
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
    return {"metadata": {"name": f"pod-{rank}", "uid": uid or f"uid-{rank}", **metadata}, "spec": {}, "status": status}


class Place:
    """Two nodes in attempt 1, a second a look."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.run, self.clock = RunDir(path / "example"), clock
        self.run.make()
        self.run.exits(1).mkdir(parents=True)
        self.meeting = Meeting(self.run)
        self.meeting.make()
        self.pods, self.job, self.removed = Objects(), Objects(), []
        self.tickets = tuple(
            Ticket(ticket=f"t{rank}", node=f"gpu-{rank}", pod=f"pod-{rank}", uid=f"uid-{rank}") for rank in range(2)
        )
        for rank, ticket in enumerate(self.tickets):
            self.meeting.lay(rank, ticket)
            self.pods.objects[f"pod-{rank}"] = pod(rank)
        cluster = Cluster(
            pods=cast(Watched, self.pods),
            job=cast(Watched, self.job),
            vigil=Vigil(self.meeting),
            check=lambda: None,
            remove=lambda ticket: self.removed.append(ticket.pod),
        )
        self.world = World(self.run, Opened(attempt=1, tickets=self.tickets), cluster)

    removed: list[str]

    def end(self, rank: int, *codes: int) -> None:
        """Let a node's agent report."""
        write_json(self.run.exits(1) / f"node-{rank}.json", {"exit_codes": list(codes)})

    def pass_time(self, seconds: int, *beating: int) -> int | None:
        """Let time pass, with signs of life of these nodes; return what the last look says."""
        result = None
        for second in range(seconds):
            self.clock.now += 1
            if second % 5 == 0:
                for rank in beating:
                    (self.meeting.directory / f"beat-{rank}").write_text("")
            result = self.world.poll()
        return result


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return Place(tmp_path, clock)


def test_it_is_over_when_every_node_has_reported(place: Place) -> None:
    assert place.pass_time(3, 0, 1) is None
    place.end(0, 75, 75)
    assert place.pass_time(3, 0, 1) is None
    place.end(1, 75, 75)
    assert place.pass_time(2, 0, 1) == 0
    assert not place.meeting.given_up(1) and place.world.lost_nodes() == ()


def test_a_node_that_is_silent_and_not_ready_is_lost_and_the_others_end_at_once(place: Place) -> None:
    place.pass_time(20, 0, 1)
    place.pods.objects["pod-1"] = pod(1, ready=False)
    assert place.pass_time(25, 0) is None and place.world.lost_nodes() == ()
    assert place.pass_time(12, 0) is None
    assert place.world.lost_nodes() == ("gpu-1",) and place.meeting.given_up(1)
    place.end(0, -9, -9)
    assert place.pass_time(2, 0) == 1


@pytest.mark.parametrize("ready", [True, False])
def test_silence_alone_is_no_loss_nor_is_the_node_controllers_word(place: Place, ready: bool) -> None:
    place.pods.objects["pod-1"] = pod(1, ready=ready)
    assert place.pass_time(100, *((0,) if ready else (0, 1))) is None
    assert place.world.lost_nodes() == () and not place.meeting.given_up(1)


def test_a_pod_that_saves_within_its_grace_period_is_not_lost(place: Place) -> None:
    place.pods.objects["pod-1"] = pod(1, ready=False, deletionTimestamp="2999-01-01T00:00:00Z")
    assert place.pass_time(200, 0) is None and place.world.lost_nodes() == ()


def test_a_pod_that_is_gone_may_have_left_words_that_come_late(place: Place) -> None:
    place.end(0, 75, 75)
    del place.pods.objects["pod-1"]
    assert place.pass_time(20, 0) is None
    place.end(1, 75, 75)
    assert place.pass_time(2, 0) == 0


def test_a_pod_that_is_gone_without_a_word_ends_the_attempt(place: Place) -> None:
    del place.pods.objects["pod-1"]
    place.pass_time(35, 0)
    assert not place.meeting.given_up(1), "the others may end by themselves"
    place.pass_time(62, 0)
    assert place.meeting.given_up(1)
    place.end(0, -9, -9)
    assert place.pass_time(2, 0) == 1
    assert place.world.lost_nodes() == (), "a pod that somebody deleted says nothing about its node"


def test_a_container_that_started_again_is_not_in_the_attempt(place: Place) -> None:
    place.end(0, 1, 1)
    place.meeting.lay(1, Ticket(ticket="new", node="gpu-1", pod="pod-1", uid="uid-1"))
    assert place.pass_time(35, 0, 1) == 1


def test_an_agent_that_comes_back_with_its_node_does_not_end_the_attempt_of_the_pod_in_its_place(place: Place) -> None:
    place.meeting.lay(1, Ticket(ticket="old", node="gpu-9", pod="pod-1", uid="uid-of-a-pod-that-was-released"))
    assert place.pass_time(200, 0, 1) is None and not place.meeting.given_up(1)


def test_a_node_that_cannot_kill_its_workers_is_taken_away(place: Place) -> None:
    place.world.kill()
    place.end(0, -9, -9)
    assert place.pass_time(100, 0, 1) is None and place.removed == []
    assert place.pass_time(25, 0, 1) == 1
    assert place.removed == ["pod-1"] and place.world.lost_nodes() == ("gpu-1",)


def test_a_suspension_is_remembered_however_short_it_was(place: Place) -> None:
    labels = {"kueue.x-k8s.io/queue-name": "training"}
    job = {"metadata": {"name": "example", "uid": "j", "labels": labels}, "spec": {"suspend": True}}
    place.job.objects["example"] = job
    place.pass_time(2, 0, 1)
    job["spec"] = {"suspend": False}
    place.pass_time(2, 0, 1)
    assert place.world.suspended_by == "PREEMPTED"
