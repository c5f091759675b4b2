"""What a pod runs before its agent works: the run directory from a ConfigMap, and the wait for the data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kubernetes_scenarios import SCENARIOS, rendered

from fullft_cluster.errors import RunFailedError, UsageError
from fullft_cluster.rundir import RunDir, write_json
from fullft_cluster.runtime import pod
from fullft_cluster.runtime.pod import main, make, wait_for_data


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod, "POLL_SECONDS", 0.01)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """What the ConfigMap gives."""
    directory = tmp_path / "files"
    directory.mkdir()
    result, _ = rendered(SCENARIOS["processes"])
    for name in (*pod.FILES, *pod.MANIFESTS):
        (directory / name).write_text(result.files[name])
    return directory


@pytest.fixture
def run(tmp_path: Path, files: Path) -> RunDir:
    made = RunDir(tmp_path / "runs" / "example")
    made.path.parent.mkdir()
    make(made, files)
    return made


def test_the_run_directory_is_made_whole_and_once(run: RunDir, files: Path) -> None:
    names = (*pod.FILES, *pod.MANIFESTS)
    assert {name: (run.path / name).read_bytes() for name in names} == {
        name: (files / name).read_bytes() for name in names
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


def test_other_manifests_are_the_same_run(run: RunDir, files: Path) -> None:
    """`resume` may apply them changed; what is trained is in the other files."""
    (files / "job.yaml").write_text("kind: JobSet\n")
    make(run, files)
    (files / "supervisor.yaml").unlink()
    make(run, files)


def test_of_two_that_make_it_at_once_one_does(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = RunDir(tmp_path / "runs" / "example")
    made.path.parent.mkdir()
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        make(made, files)  # the other one, a moment earlier
        made.update_run(attempt=7)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    make(made, files)
    assert made.read_run()["attempt"] == 7
    assert [path.name for path in made.path.parent.iterdir()] == ["example"]


def report(run: RunDir, code: int, errors: list[str]) -> None:
    run.prepare_report.parent.mkdir(exist_ok=True)
    write_json(run.prepare_report, {"exit_code": code, "errors": errors})


def prepared(run: RunDir) -> None:
    report(run, 0, [])
    write_json(run.data, {})


def test_the_wait_for_the_data(run: RunDir, files: Path) -> None:
    with pytest.raises(RunFailedError, match="example-prepare"):
        wait_for_data(run, seconds=0.03)
    report(run, 1, ["the network was gone"])  # may go well the next time
    with pytest.raises(RunFailedError, match="is not there"):
        wait_for_data(run, seconds=0.03)
    report(run, 2, ["train.jsonl:3: no text"])
    with pytest.raises(UsageError, match=r"train\.jsonl:3"):
        wait_for_data(run, seconds=60)
    assert main(["node", "--run", str(run.path), "--files", str(run.path), "--node-rank", "0"]) == 93
    make(run, files)  # a new preparation: the old one's word is no longer waited on
    with pytest.raises(RunFailedError):
        wait_for_data(run, seconds=0.03)
    prepared(run)
    wait_for_data(run, seconds=0.03)


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_nothing_waits_for_the_data_of_a_run_that_has_ended(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(pod, "ENDED_SECONDS", 0.05)
    run.update_run(state=state)
    with pytest.raises(UsageError, match=state):
        wait_for_data(run, seconds=60)
    assert main(["node", "--run", str(run.path), "--files", str(run.path), "--node-rank", "0"]) == 93


def test_a_node_beyond_the_plan_is_refused(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(run)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["node", "--run", str(run.path), "--files", str(run.path), "--node-rank", "1"]) == 93
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert "not below the plan's 1 nodes" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code"), [([], 75), (["--stopped-exit", "143"], 143)])
def test_a_pod_that_waits_for_its_data_leaves_when_asked(run: RunDir, arguments: list[str], code: int) -> None:
    """The first process of a container ignores SIGTERM unless it has a handler of its own."""
    program = "import sys; from fullft_cluster.runtime import pod\n"
    program += "pod.wait_for_data = lambda run: [print('waits', flush=True), pod.time.sleep(600)]\nsys.exit(pod.main())"
    command = [
        sys.executable,
        "-c",
        program,
        "node",
        "--run",
        str(run.path),
        "--files",
        str(run.path),
        "--node-rank",
        "0",
        *arguments,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == code
    process.stdout.close()


def test_a_node_of_another_run_leaves_a_directory_alone(
    run: RunDir, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(run)
    (files / "config.yaml").write_text("name: another\n")
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert main(["node", "--run", str(run.path), "--files", str(files), "--node-rank", "0"]) == 93
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    assert "holds another run: config.yaml differ" in capsys.readouterr().err
    assert not (run.path / "control" / "pods").exists(), "no ticket was laid"


@pytest.mark.parametrize(
    ("before", "after"), [("failed", "pending"), ("cancelled", "pending"), ("completed", "completed")]
)
def test_a_run_that_is_submitted_again_goes_on(run: RunDir, files: Path, before: str, after: str) -> None:
    run.update_run(state=before, attempt=2, history={"failures": 3})
    make(run, files)
    assert (run.read_run()["state"], run.read_run()["attempt"]) == (after, 2)
