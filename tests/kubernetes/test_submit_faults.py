"""A submit to a real API server that loses answers, is busy, refuses the last part, or is away: all or nothing."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kube_cli import Shell, make_run, names, objects
from kube_lab import Lab
from kube_proxy import Proxy, Question, Rule, Verdict, refusal

pytest.importorskip("kubernetes", reason="the kubernetes extra is not installed")
pytestmark = pytest.mark.kubernetes

KINDS = {"pytorchjob": "pytorchjobs", "trainjob": "trainjobs", "jobset": "jobsets", "job": "jobs"}
MODIFIED = "Operation cannot be fulfilled on x: the object has been modified; please apply your changes to it"


@pytest.fixture
def proxy(lab: Lab, namespace: str, tmp_path: Path) -> Iterator[Proxy]:
    made = Proxy(lab.kubeconfig("user", namespace), tmp_path)
    yield made
    made.close()


@pytest.fixture
def shell(proxy: Proxy, tmp_path: Path) -> Shell:
    return Shell(tmp_path, proxy.kubeconfig)


def once(verdict: Verdict, when: Callable[[Question], bool]) -> Rule:
    """Each question that is alike meets it once."""
    met: set[tuple[str, str]] = set()

    def rule(question: Question) -> Verdict:
        key = question.method, question.path
        if not when(question) or key in met:
            return None
        met.add(key)
        return verdict

    return rule


@pytest.mark.parametrize(
    "verdict",
    ["lose", "drop", refusal(429, "busy"), refusal(500, "etcd leader changed"), refusal(409, MODIFIED, "Conflict")],
    ids=["lost", "dropped", "429", "500", "409"],
)
def test_nothing_is_submitted_twice(lab: Lab, namespace: str, proxy: Proxy, shell: Shell, verdict: Verdict) -> None:
    """Every write that can meet it meets the fault once. What is created once keeps the generation of its creation."""
    proxy.rule = once(
        verdict,
        lambda question: (
            question.writes and (verdict != refusal(409, MODIFIED, "Conflict") or question.method == "PATCH")
        ),
    )
    done = shell("submit", *shell.job())
    assert done.stdout == "run\n"
    found = objects(lab.client, namespace)
    assert set(found) == names()
    writes = [question for question in proxy.questions if question.writes]
    assert len(writes) > len(found)  # they were sent again
    assert {one["metadata"]["generation"] for one in found.values() if "generation" in one["metadata"]} == {1}
    # Only one submit can make NAME-state, and its answer was among those that were lost.
    assert found["configmaps/run-state"]["metadata"]["annotations"]["fullft-cluster/submission"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_last_part_that_is_refused_takes_the_others_back(
    lab: Lab, namespace: str, proxy: Proxy, shell: Shell, kind: str
) -> None:
    last = f"/{KINDS[kind]}/run"
    words = 'pytorchjobs "run" is forbidden: exceeded quota: late, requested: pods=1'
    proxy.rule = lambda question: (
        refusal(403, words, "Forbidden")
        if question.writes and question.path.endswith(last) and question.method == "PATCH"
        else None
    )
    done = shell("submit", *shell.job("run", kind), code=4)
    assert "exceeded quota: late" in done.stderr and "removing what was made" in done.stderr
    lab.wait_for(lambda: objects(lab.client, namespace) == {})
    assert lab.pods(namespace) == [] or lab.wait_for(lambda: lab.pods(namespace) == [])


def test_what_cannot_be_taken_back_is_named(lab: Lab, namespace: str, proxy: Proxy, shell: Shell) -> None:
    def rule(question: Question) -> Verdict:
        if question.writes and question.path.endswith("/pytorchjobs/run") and question.method == "PATCH":
            return refusal(422, "spec: Invalid value", "Invalid")
        if question.method == "DELETE" and question.path.endswith("/roles/run"):
            return refusal(403, 'User "user" cannot delete resource "roles" in API group "x"', "Forbidden")
        return None

    proxy.rule = rule
    done = shell("submit", *shell.job(), "--json", code=4)
    problems = json.loads(done.stdout)["error"]["problems"]
    assert "these may still be there: roles.rbac.authorization.k8s.io/run" in problems[1]["what"]
    command = re.search(r"`kubectl (delete [^`]*)`", problems[1]["fix"])
    assert command is not None
    lab.wait_for(lambda: set(objects(lab.client, namespace)) == {"roles/run"})
    assert lab.kubectl(*command[1].split(), user="user").returncode == 0  # the command that it names
    assert objects(lab.client, namespace) == {}


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(
    lab: Lab, namespace: str, proxy: Proxy, shell: Shell, stop: signal.Signals
) -> None:
    there, reached = threading.Event(), threading.Event()

    def rule(question: Question) -> Verdict:
        if question.writes and question.path.endswith("/jobs/run-supervisor") and not reached.is_set():
            reached.set()
            there.wait(30)
        return None

    proxy.rule = rule
    child = shell.start("submit", *shell.job())
    assert reached.wait(60)
    child.send_signal(stop)
    time.sleep(0.5)
    there.set()
    _, err = child.communicate(timeout=60)
    assert child.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[stop], err
    assert "stopping after this step" in err
    lab.wait_for(lambda: objects(lab.client, namespace) == {})


def test_submit_watch_and_logs_outlive_20_seconds_without_a_server(
    lab: Lab, namespace: str, proxy: Proxy, shell: Shell
) -> None:
    make_run(lab.client, namespace, "other", **{"run.json": {"state": "running"}})
    lab.apply(json.dumps(_talker(namespace)), namespace=namespace)
    lab.wait_for(lambda: lab.pod(namespace, "other-0-x8zqp")["status"]["phase"] == "Running")
    flags = ("--backend", "kubernetes")
    watch = shell.start("status", "other", *flags, "--watch", "--json")
    logs = shell.start("logs", "other", *flags, "--follow", "--json")
    lab.wait_for(lambda: sum("watch" in question.query for question in proxy.questions) >= 1)
    middle, down = threading.Event(), threading.Event()
    proxy.rule = _pause_at_the_fourth_write(middle, down)
    child = shell.start("submit", *shell.job())
    assert middle.wait(60)
    with lab.api_down():
        down.set()
        time.sleep(20)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert "trying again" in err and "answers again" in err
    ours = {"configmaps/other-files", "configmaps/other-state", "jobs/other"}
    lab.wait_for(lambda: set(objects(lab.client, namespace)) - ours == names())
    said = len(lab.kubectl("logs", "other-0-x8zqp", namespace=namespace).stdout.split())
    lab.wait_for(lambda: len(lab.kubectl("logs", "other-0-x8zqp", namespace=namespace).stdout.split()) > said)
    state = {"data": {"status.json": json.dumps(_completed("other"))}}
    lab.patch(f"/api/v1/namespaces/{namespace}/configmaps/other-state", state)
    _ends_well(watch, logs)


def _pause_at_the_fourth_write(middle: threading.Event, down: threading.Event) -> Rule:
    """Have the server stopped in the very middle of a submit."""
    writes: list[str] = []

    def rule(question: Question) -> Verdict:
        if question.writes:
            writes.append(question.path)
        if len(writes) == 4:
            middle.set()
            down.wait(60)
        return None

    return rule


def _talker(namespace: str) -> dict[str, object]:
    labels = {"app.kubernetes.io/managed-by": "fullft-cluster", "app.kubernetes.io/instance": "other"}
    labels["app.kubernetes.io/component"] = "worker"
    script = "n=0; while true; do n=$((n+1)); echo line$n; sleep 0.5; done"
    container = {"name": "node", "image": "none", "command": ["sh", "-c", script]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "other-0-x8zqp", "namespace": namespace, "labels": labels},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
    }


def _completed(name: str) -> dict[str, object]:
    keys = "job_id prepare_job_id phase step total_steps loss learning_rate tokens_per_second mfu eta_seconds"
    more = "last_checkpoint_step heartbeat_age_seconds export eval_loss best_eval_loss best_step best"
    empty = dict.fromkeys([*keys.split(), *more.split()])
    known = {"name": name, "run_dir": "/shared/runs/other", "backend": "kubernetes", "state": "completed"}
    return {**empty, **known, "reason": "training finished", "attempt": 1, "restarts": 0, "nodes": [], "attempts": []}


def _ends_well(watch: subprocess.Popen[str], logs: subprocess.Popen[str]) -> None:
    out, err = watch.communicate(timeout=90)
    assert watch.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["state"] == "completed"
    out, err = logs.communicate(timeout=90)
    assert logs.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["log"] for line in lines} == {"node-0"}
    numbers = [int(line["line"].removeprefix("line")) for line in lines]
    assert numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 40  # each once, none lost
