"""What a pod runs: the run directory from a ConfigMap, the wait for the data, and the agreement on an attempt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from kubernetes_scenarios import SCENARIOS, rendered

from fullft_cluster.errors import RunFailedError, UsageError
from fullft_cluster.rundir import RunDir, write_json
from fullft_cluster.runtime import pod
from fullft_cluster.runtime.pod import Meeting, main, make, wait_for_data


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod, "POLL_SECONDS", 0.01)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """What the ConfigMap gives."""
    directory = tmp_path / "files"
    directory.mkdir()
    result, _ = rendered(SCENARIOS["processes"])
    for name in pod.FILES:
        (directory / name).write_text(result.files[name])
    return directory


@pytest.fixture
def run(tmp_path: Path, files: Path) -> RunDir:
    made = RunDir(tmp_path / "runs" / "example")
    made.path.parent.mkdir()
    make(made, files)
    return made


def test_the_run_directory_is_made_whole_and_once(run: RunDir, files: Path) -> None:
    assert {name: (run.path / name).read_bytes() for name in pod.FILES} == {
        name: (files / name).read_bytes() for name in pod.FILES
    }
    assert run.read_run()["backend"] == "kubernetes" and run.read_run()["world_size"] == 2
    assert run.logs.is_dir() and run.heartbeats.is_dir() and run.checkpoints.is_dir()
    assert [path.name for path in run.path.parent.iterdir()] == ["example"], "nothing half-made is left"
    run.update_run(attempt=3)
    make(run, files)
    assert run.read_run()["attempt"] == 3, "a run that is there goes on"


def test_the_directory_of_another_run_is_refused(run: RunDir, files: Path) -> None:
    (files / "deepspeed.json").write_text("{}")
    before = run.deepspeed.read_bytes()
    with pytest.raises(UsageError, match=r"deepspeed\.json differ"):
        make(run, files)
    assert run.deepspeed.read_bytes() == before
    assert main(["make", "--run", str(run.path), "--files", str(files)]) == 2


def report(run: RunDir, code: int, errors: list[str]) -> None:
    run.prepare_report.parent.mkdir(exist_ok=True)
    write_json(run.prepare_report, {"exit_code": code, "errors": errors})


def test_the_wait_for_the_data(run: RunDir, files: Path) -> None:
    with pytest.raises(RunFailedError, match="example-prepare"):
        wait_for_data(run, seconds=0.03)
    report(run, 1, ["the network was gone"])  # may go well the next time
    with pytest.raises(RunFailedError, match="is not there"):
        wait_for_data(run, seconds=0.03)
    report(run, 2, ["train.jsonl:3: no text"])
    with pytest.raises(UsageError, match=r"train\.jsonl:3"):
        wait_for_data(run, seconds=60)
    assert main(["node", "--run", str(run.path), "--node-rank", "0"]) == 93
    make(run, files)  # a new preparation: the old one's word is no longer waited on
    with pytest.raises(RunFailedError):
        wait_for_data(run, seconds=0.03)
    report(run, 0, [])
    write_json(run.data, {})
    wait_for_data(run, seconds=0.03)


def meet(run: RunDir, nodes: int) -> list[int]:
    """The attempts that so many pods agree on, the last one first to come."""
    found: dict[int, int] = {}

    def join(rank: int) -> None:
        found[rank] = Meeting(run, rank, nodes).join(f"host-{rank}", seconds=60)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in reversed(range(nodes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(nodes)]


def test_pods_agree_on_the_attempt_life_after_life(run: RunDir) -> None:
    run.stop.touch()
    assert meet(run, 3) == [1, 1, 1]
    state = run.read_run()
    assert (state["state"], state["attempt"], state["restarts"]) == ("running", 1, 0)
    assert state["nodes"] == ["host-0", "host-1", "host-2"]
    assert not run.stop.exists(), "a stop of the attempt before is not one of this"
    assert meet(run, 3) == [2, 2, 2], "what the first attempt left is not taken for the second"
    assert run.exits(2).is_dir()


def test_a_pod_that_comes_back_alone_is_in_no_attempt(run: RunDir) -> None:
    assert meet(run, 2) == [1, 1]
    with pytest.raises(RunFailedError, match="nothing new of node 0"):
        Meeting(run, 1, 2).join("host-1", seconds=0.05)
    assert run.read_run()["attempt"] == 1
    assert meet(run, 2) == [2, 2], "with new pods on every node the run goes on"


def test_a_node_beyond_the_plan_is_refused(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    report(run, 0, [])
    write_json(run.data, {})
    assert main(["node", "--run", str(run.path), "--node-rank", "1"]) == 93
    assert "not below the plan's 1 nodes" in capsys.readouterr().err


def test_the_node_agent_runs_with_what_was_agreed(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    report(run, 0, [])
    write_json(run.data, {})
    monkeypatch.setenv("NODE_NAME", "gpu-7")
    given: list[list[str]] = []
    monkeypatch.setattr(pod.node, "main", lambda argv: given.append(argv) or 75)
    assert pod.run_node(run, 0) == 75
    assert given == [["--run", str(run.path), "--attempt", "1", "--node-rank", "0"]]
    assert run.read_run()["nodes"] == ["gpu-7"]


def test_a_waiting_pod_leaves_when_asked(run: RunDir) -> None:
    """The first process of a container ignores SIGTERM unless it has a handler of its own."""
    code = "import sys; from fullft_cluster.runtime import pod; print('up', flush=True); "
    code += "pod.wait_for_data = lambda run: [print('waits', flush=True), pod.time.sleep(600)]; sys.exit(pod.main())"
    command = [sys.executable, "-c", code, "node", "--run", str(run.path), "--node-rank", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["up\n", "waits\n"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    process.stdout.close()
