"""Watches and logs that are followed, through versions that are too old, lost connections and new pods."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_api import Answer, Asked, FakeApi, Lost, Stream, api_of, refusal
from kubernetes_scenarios import KINDS, SCENARIOS, rendered

pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")

from fullft_cluster.backends.kubernetes_logs import INIT, Follower, Log, follow_log, logs_of
from fullft_cluster.kubernetes_api import Api, ApiError, Forbidden, Watched, object_path
from fullft_cluster.kubernetes_api.watched import watch

PODS = object_path("Pod", "ml")


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeApi]:
    server = FakeApi(tmp_path)
    yield server
    server.close()


@pytest.fixture
def api(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Api:
    return api_of(fake, monkeypatch)


def pod(name: str, version: int, phase: str = "Running") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": f"{name}-uid", "resourceVersion": str(version)},
        "status": {"phase": phase},
    }


def listed(*pods: dict[str, Any], version: int) -> Answer:
    body = {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": str(version)}, "items": list(pods)}
    return Answer(200, body)


def event(kind: str, obj: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": obj}


EXPIRED = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version: 5 (9)"}


def told(api: Api, count: int) -> list[tuple[str, list[str]]]:
    """The first events of a watch that are about objects."""
    found: list[tuple[str, list[str]]] = []
    for one in watch(api, PODS):
        if one.type not in ("LOST", "FOUND"):
            found.append((one.type, [obj["metadata"]["name"] for obj in one.objects]))
        if len(found) == count:
            return found
    return found


def versions(fake: FakeApi) -> list[str | None]:
    """From which version each question went on; None for a list."""
    return [one.query["resourceVersion"] if "watch" in one.query else None for one in fake.asked]


def test_a_watch_goes_on_from_the_last_version_after_a_clean_end_and_after_a_break(fake: FakeApi, api: Api) -> None:
    fake.answers = [
        listed(pod("a", 1), version=3),
        Stream((event("ADDED", pod("b", 4)), event("BOOKMARK", {"metadata": {"resourceVersion": "7"}}))),
        Stream((event("MODIFIED", pod("b", 8)),), broken=True),
        Lost(),
        refusal(503, "starting"),
        Stream((event("DELETED", pod("b", 9)),)),
    ]
    assert told(api, 4) == [("LIST", ["a"]), ("ADDED", ["b"]), ("MODIFIED", ["b"]), ("DELETED", ["b"])]
    assert versions(fake) == [None, "3", "7", "8", "8", "8"]


@pytest.mark.parametrize(
    "gone", [Stream((event("ERROR", EXPIRED),)), refusal(410, "too old resource version", "Expired")]
)
def test_after_410_the_list_is_read_again(fake: FakeApi, api: Api, gone: Any) -> None:
    fake.answers = [
        listed(pod("a", 1), version=5),
        gone,
        listed(pod("b", 8), version=9),
        Stream((event("ADDED", pod("c", 10)),)),
    ]
    assert told(api, 3) == [("LIST", ["a"]), ("LIST", ["b"]), ("ADDED", ["c"])]
    assert versions(fake) == [None, "5", None, "9"]


def test_half_a_line_at_a_break_is_not_taken_for_an_event(fake: FakeApi, api: Api) -> None:
    fake.answers = [
        listed(version=1),
        Stream(('{"type": "ADDED", "obj',), broken=True),
        Stream((event("ADDED", pod("a", 2)),)),
    ]
    assert told(api, 2) == [("LIST", []), ("ADDED", ["a"])]
    assert versions(fake) == [None, "1", "1"]


def test_a_permission_that_is_missing_ends_a_watch(fake: FakeApi, api: Api) -> None:
    fake.answers = [refusal(403, 'User "eve" cannot list resource "pods" in API group ""', "Forbidden")]
    with pytest.raises(Forbidden, match="you may not list pods"):
        told(api, 1)


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_watched_keeps_its_objects_while_the_server_is_away(fake: FakeApi, api: Api) -> None:
    back: list[bool] = []

    def later(asked: Asked) -> Any:
        if not back:
            return refusal(503, "away")
        if "watch" in asked.query:
            return Stream((event("ADDED", pod("b", 9)),))
        return listed(pod("a", 8), version=8)

    fake.answers = [listed(pod("a", 1), version=1), Stream((), broken=True), later]
    api.sleep = lambda seconds: time.sleep(0.01)
    watched = Watched(api, PODS).start()
    until(lambda: watched.synced and watched.lost_seconds > 0)
    assert list(watched.items()) == ["a"]
    back.append(True)
    assert watched.wait(30)
    until(lambda: set(watched.items()) == {"a", "b"} and watched.lost_seconds == 0)
    assert watched.error is None
    watched.stop()


def test_watched_remembers_what_is_gone(fake: FakeApi, api: Api) -> None:
    fake.answers = [
        listed(pod("a", 1), pod("b", 1), version=1),
        Stream((event("DELETED", pod("a", 2, "Failed")), event("ERROR", EXPIRED))),
        listed(version=9),
        lambda asked: Stream(()) if "watch" in asked.query else listed(version=9),
    ]
    watched = Watched(api, PODS).start()
    until(lambda: watched.synced and not watched.items())
    gone = watched.last("a-uid")
    assert gone is not None and gone["status"]["phase"] == "Failed"
    assert watched.last("b-uid") is not None and watched.last("x") is None
    watched.stop()


# --- logs
LOG = Log(pod="x-master-0", uid="u", container="pytorch", life=0, name="master-0")


def status(state: str, restarts: int = 0, uid: str = "u") -> dict[str, Any]:
    one = {"name": "pytorch", "restartCount": restarts, "state": {state: {}}}
    labels = {"app.kubernetes.io/component": "worker"}
    metadata = {"name": "x-master-0", "uid": uid, "labels": labels, "resourceVersion": "1"}
    return {"metadata": metadata, "status": {"phase": "Running", "containerStatuses": [one]}}


def second(number: int, text: str) -> str:
    return f"2026-01-05T10:00:0{number}.500000000Z {text}"


def test_a_log_is_followed_across_a_break_without_a_line_twice(fake: FakeApi, api: Api) -> None:
    streams = [
        Stream((second(1, "one"), second(2, "two")), broken=True),
        Stream((second(2, "two"), second(3, "three"))),
        Stream((second(3, "three"), second(4, "four"))),
    ]
    states = [status("running"), status("terminated")]

    def answer(asked: Asked) -> Any:
        return streams.pop(0) if asked.path.endswith("/log") else Answer(200, states.pop(0))

    fake.answers = [answer]
    assert list(follow_log(api, "ml", LOG, tail=7)) == ["one", "two", "three", "four"]
    asked = [one.query for one in fake.asked if one.path.endswith("/log")]
    assert [one.get("tailLines") for one in asked] == ["7", None, None]
    assert [one.get("sinceTime") for one in asked] == [None, "2026-01-05T10:00:02Z", "2026-01-05T10:00:03Z"]


@pytest.mark.parametrize("after", [Answer(200, status("running", uid="other")), Answer(200, status("running", 1))])
def test_a_log_ends_with_its_container_not_with_its_name(fake: FakeApi, api: Api, after: Answer) -> None:
    fake.answers = [lambda asked: Stream((second(1, "one"),)) if asked.path.endswith("/log") else after]
    assert list(follow_log(api, "ml", LOG, tail=None)) == ["one"]


def test_the_log_of_a_pod_that_is_gone_ends(fake: FakeApi, api: Api) -> None:
    fake.answers = [refusal(404, "not found", "NotFound", name="x-master-0", kind="pods")]
    assert list(follow_log(api, "ml", LOG, tail=None)) == []


def test_pods_that_take_the_place_of_others_are_followed_too(fake: FakeApi, api: Api) -> None:
    """The same name, another uid, as an operator makes it after an eviction."""
    first, again = status("running", uid="first"), status("running", uid="second")
    events = [event("DELETED", first), event("ADDED", again)]
    read: list[str] = []

    def answer(asked: Asked) -> Any:
        if asked.path.endswith("/log") and "follow" not in asked.query:
            return Answer(200, b"")  # nothing was said before
        if asked.path.endswith("/log"):
            read.append(asked.path)
            return Stream((second(len(read), f"life {len(read)}"),))
        if "watch" in asked.query:
            return Stream((events.pop(0),)) if read and events else Stream(())
        return Answer(404, {}) if asked.path.endswith("x-master-0") else listed(first, version=1)

    fake.answers = [answer]
    lines: list[tuple[str, str]] = []
    Follower(api, "ml", "x", lambda *line: lines.append(line)).follow(lambda: len(lines) == 2, tail=5)
    assert lines == [("master-0", "life 1"), ("master-0", "life 2")]


def test_what_was_said_before_is_told_in_the_order_of_time_and_what_follows_once(fake: FakeApi, api: Api) -> None:
    done, runs = status("terminated"), status("running", uid="v")
    done["metadata"]["name"], runs["metadata"]["name"] = "x-master-0", "x-worker-0"
    runs["metadata"]["resourceVersion"] = "2"
    said = {
        "x-master-0": [second(1, "a first"), "unable to retrieve more", second(4, "a last")],
        "x-worker-0": [second(2, "b first"), second(3, "b second")],
    }
    more = [second(3, "b second"), second(5, "b third")]
    lines: list[tuple[str, str]] = []

    def answer(asked: Asked) -> Any:
        name = asked.path.removesuffix("/log").rpartition("/")[2]
        if not asked.path.endswith("/log"):
            return Stream(()) if "watch" in asked.query else Answer(404, {}) if name != "pods" else both
        if "follow" in asked.query:
            assert name == "x-worker-0", "nothing follows what has ended"
            return Stream(tuple(more))
        return Answer(200, "".join(f"{line}\n" for line in said[name]).encode())

    both = listed(runs, done, version=3)
    fake.answers = [answer]
    Follower(api, "ml", "x", lambda *line: lines.append(line)).follow(lambda: len(lines) == 6, tail=5)
    a, b = "master-0", "worker-0"
    first = [(a, "a first"), (a, "unable to retrieve more"), (b, "b first"), (b, "b second"), (a, "a last")]
    assert lines == [*first, (b, "b third")]
    (since,) = {one.query.get("sinceTime") for one in fake.asked if "follow" in one.query}
    assert since == "2026-01-05T10:00:03Z"


def test_a_past_that_cannot_be_read_is_told_by_who_follows(fake: FakeApi, api: Api) -> None:
    no = refusal(403, 'User "eve" cannot get resource "pods/log" in API group ""', "Forbidden")
    runs = listed(status("running"), version=1)
    fake.answers = [lambda asked: no if asked.path.endswith("/log") else Stream(()) if "watch" in asked.query else runs]
    with pytest.raises(ApiError, match="may not get pods/log"):
        Follower(api, "ml", "x", lambda *line: None).follow(lambda: False, tail=5)


def test_our_own_init_containers_have_logs_and_an_operators_have_none() -> None:
    begun: dict[str, Any] = {"terminated": {}}
    waiting = status("waiting")
    waiting["status"]["initContainerStatuses"] = [{"name": name, "state": begun} for name in ("init-pytorch", *INIT)]
    assert [log.name for log in logs_of(waiting, "x")] == [f"master-0/{name}" for name in INIT]
    made = [one for kind in KINDS for one in yaml.safe_load_all(rendered(SCENARIOS["four-nodes"], kind)[0].script)]
    assert set(re.findall(r"'initContainers': \[\{'name': '([^']*)'", str(made))) == INIT


def test_only_containers_that_have_begun_have_logs() -> None:
    waiting = status("waiting")
    assert logs_of(waiting, "x") == []
    waiting["status"]["initContainerStatuses"] = [{"name": "run-directory", "state": {"terminated": {}}}]
    assert [log.name for log in logs_of(waiting, "x")] == ["master-0/run-directory"]
    assert [log.life for log in logs_of(status("waiting", restarts=2), "x")] == [2]


def test_a_log_that_is_forbidden_says_so(fake: FakeApi, api: Api) -> None:
    fake.answers = [refusal(403, 'User "eve" cannot get resource "pods/log" in API group ""', "Forbidden")]
    with pytest.raises(ApiError, match="may not get pods/log"):
        list(follow_log(api, "ml", LOG, tail=None))
