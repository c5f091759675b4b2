"""The whole road on this machine by the command line: submit, a scheduler's warning, a sudden end, resume, export."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]
SENTINEL = "hf_sentinel_0123456789"
DEADLINE_SECONDS = 240


class Local:
    """The command, with its runs in a directory of the test."""

    def __init__(self, directory: Path) -> None:
        self.runs = directory / "runs with a 'space"
        secrets = {"HF_TOKEN": SENTINEL, "WANDB_API_KEY": SENTINEL}
        self.env = {**os.environ, **secrets, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

    def __call__(self, command: str, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "fullft_cluster", command, *arguments, "--runs-dir", str(self.runs)],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    def status(self, name: str) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self("status", name, "--json"))
        return status

    def wait(self, name: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < end:
            status = self.status(name)
            if condition(status):
                return status
            assert status["state"] not in ("completed", "failed", "cancelled"), status
            time.sleep(0.3)
        raise AssertionError(f"not in {DEADLINE_SECONDS} s: {self.status(name)}")


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    local = Local(tmp_path)
    yield local
    for path in local.runs.glob("*/run.json"):
        pid = json.loads(path.read_bytes()).get("pid")
        if pid and workers(path.parent):
            os.kill(pid, signal.SIGKILL)


def workers(run: Path) -> list[str]:
    """Return the pids of this run's processes."""
    found = subprocess.run(["pgrep", "-f", f"fullft_cluster.*--run {run}"], capture_output=True, text=True, check=False)
    return found.stdout.split()


def test_the_whole_road(local: Local) -> None:
    job = ("--config", "configs/jobs/tiny-local.yaml", "--data", "configs/sample/train.jsonl", "--max-steps", "40")
    settings = ("--set", "output.save_steps=10", "--set", "train.precision=fp32")
    name = local("submit", *job, *settings).strip()
    assert name == "tiny-train"
    run = local.runs / name

    # A warning as a scheduler sends it: an agreed stop, a checkpoint, and the next attempt goes on at the next step.
    local.wait(name, lambda s: (s["step"] or 0) >= 3)
    os.kill(json.loads((run / "run.json").read_bytes())["pid"], signal.SIGUSR1)
    status = local.wait(name, lambda s: s["attempt"] == 2 and s["step"] > s["last_checkpoint_step"])
    stopped = status["attempts"][0]
    assert (stopped["cause"], stopped["decision"], stopped["exit_codes"]) == ("stop_requested", "requeue", [75, 75])
    assert stopped["committed_step"] == stopped["last_step"]

    # Ended at once: no worker outlives its supervisor, and resume goes on from the newest checkpoint.
    local("resume", name, code=2)
    local("cancel", name, "--now")
    assert local.status(name)["state"] == "cancelled"
    end = time.monotonic() + 20
    while workers(run) and time.monotonic() < end:
        time.sleep(0.1)
    assert not workers(run)
    assert local("resume", name).strip() == name
    status = local.wait(name, lambda s: s["state"] == "completed")
    assert [line["attempt"] for line in status["attempts"]] == [1, 2, 3]
    assert [line["cause"] for line in status["attempts"]] == ["stop_requested", "cancelled", "done"]
    assert [run["state"] for run in json.loads(local("list", "--json"))] == ["completed"]
    local("resume", name, code=2)
    local("cancel", name, code=2)

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [line for line in lines if "loss" in line]
    evaluated = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    assert sorted(evaluated) == list(range(10, 41, 10))
    best = json.loads((run / "best" / "fullft_cluster.json").read_bytes())
    assert (best["step"], best["eval_loss"]) == min(evaluated.items(), key=lambda one: one[1])
    assert sorted({line["step"] for line in metrics}) == list(range(1, 41))
    first_of_attempt_2 = next(line["step"] for line in metrics if line["attempt"] == 2)
    assert first_of_attempt_2 == stopped["last_step"] + 1
    logged = [json.loads(line) for line in local("logs", name, "--all", "--json").splitlines()]
    assert {line["log"] for line in logged} >= {"supervisor.log", "attempt-1-node-0.log", "attempt-3-node-0.log"}

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(status["export"])
    tokens = AutoTokenizer.from_pretrained(status["export"])("Two", return_tensors="pt")
    assert model.generate(**tokens, max_new_tokens=4, do_sample=False).shape[1] > tokens["input_ids"].shape[1]

    modes = {path.name: path.stat().st_mode & 0o777 for path in Path(status["export"]).iterdir()}
    assert len(set(modes.values())) == 1, f"colleagues can read the weights as they can the config: {modes}"

    # The plan's checkpoint is the one on disk, within what the files themselves take; and no secret is anywhere.
    plan = json.loads((run / "plan.json").read_bytes())
    size = sum(path.stat().st_size for path in (run / "checkpoints" / "step-40").rglob("*.pt")) / 1e9
    assert size == pytest.approx(plan["checkpoint_gb"], rel=0.05)
    files = [path for path in local.runs.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if SENTINEL.encode() in path.read_bytes()]


def test_bad_data_is_refused_before_anything_starts(local: Local, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a b c"}\n{"nothing": 1}\n')
    local("submit", "--config", "configs/jobs/tiny-local.yaml", "--data", str(bad), code=2)
    assert not list(local.runs.glob("*"))
