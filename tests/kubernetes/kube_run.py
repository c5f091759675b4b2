"""One run on the test cluster, driven as a user drives it: by the command line, with its files as evidence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kube_lab import Lab
from run_files import RunFiles

ROOT = Path(__file__).parents[2]
MAIN = "import sys; from fullft_cluster.cli.main import main; sys.exit(main())"
STEPS = 16
SAVE_STEPS = 6
CLUSTER = Path(__file__).parent / "cluster.yaml"
# Two nodes, two processes each, in fp32, so that two runs can be compared bit for bit.
SETTINGS = (
    "resources.nodes=2",
    "resources.gpus_per_node=2",
    "resources.micro_batch_size=1",
    "train.precision=fp32",
    "train.seq_len=128",
    "train.global_batch_size=8",
    f"train.max_steps={STEPS}",
    "train.learning_rate=1e-3",
    f"output.save_steps={SAVE_STEPS}",
)
PATHS = {
    "pytorchjob": "/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs",
    "trainjob": "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{namespace}/trainjobs",
    "jobset": "/apis/jobset.x-k8s.io/v1alpha2/namespaces/{namespace}/jobsets",
    "job": "/apis/batch/v1/namespaces/{namespace}/jobs",
}
OVER = ("completed", "failed", "cancelled")


class Place:
    """Where the runs of a test session live, and the command line that works there."""

    def __init__(self, lab: Lab, directory: Path, data: Path) -> None:
        self.lab, self.directory, self.data = lab, directory, data
        self.runs = directory / "runs"
        self.runs.mkdir()

    def cli(self, namespace: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `fullft-cluster ARGUMENTS` as the user of the namespace; its exit code must be `code`."""
        env = {**os.environ, "KUBECONFIG": str(self.lab.kubeconfig("user", namespace)), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", MAIN, *arguments],
            cwd=self.directory,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def arguments(self, kind: str, namespace: str, name: str, *settings: str) -> list[str]:
        """Return the options by which a run of the tiny model is rendered or submitted."""
        own = (f"kubernetes.host_path={self.runs}", f"kubernetes.python={sys.executable}")
        sets = [part for setting in (*SETTINGS, *own, *settings) for part in ("--set", setting)]
        where = ["--cluster", str(CLUSTER), "--data", str(self.data), "--runs-dir", str(self.runs), "--name", name]
        target = ["--backend", "kubernetes", "--kind", kind, "--namespace", namespace]
        return [*target, "--model", "tiny", *where, *sets]

    def submit(self, kind: str, namespace: str, name: str, *settings: str) -> Run:
        """Submit a run of the tiny model."""
        self.cli(namespace, "submit", *self.arguments(kind, namespace, name, *settings))
        return Run(self, namespace, name, kind)

    def apply(self, kind: str, namespace: str, name: str, *settings: str) -> Run:
        """Render a run and apply the bytes by kubectl."""
        done = self.cli(namespace, "render", *self.arguments(kind, namespace, name, *settings))
        self.lab.apply(done.stdout, user="user", namespace=namespace)
        return Run(self, namespace, name, kind)


class Run(RunFiles):
    """A run: its directory on the volume, its objects in the cluster."""

    def __init__(self, place: Place, namespace: str, name: str, kind: str) -> None:
        super().__init__(place.runs / name)
        self.place, self.lab, self.namespace, self.name, self.kind = place, place.lab, namespace, name, kind

    # --- in the cluster
    def pods(self, component: str = "worker") -> list[dict[str, Any]]:
        """Return the pods of the run that have not ended and are not told to go."""
        selector = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"
        return [
            pod
            for pod in self.lab.pods(self.namespace, selector)
            if pod["status"].get("phase") in ("Pending", "Running") and "deletionTimestamp" not in pod["metadata"]
        ]

    def pod_of_node(self, rank: int) -> dict[str, Any]:
        """Return the pod of a node of the newest attempt."""
        ticket = self.json("control/pods/attempt.json")["tickets"][rank]
        return self.lab.pod(self.namespace, ticket["pod"])

    # --- waiting
    def frozen_at(self, attempt: int, step: int) -> int:
        """Stop the workers' clocks once this attempt has logged that step; return the step at which they stand."""
        self.wait_for(lambda: self.reached(attempt, step), 180)
        self.freeze()
        assert self.step() < STEPS, "the run was over before it could be interrupted"
        return self.step()

    def attempt_ended(self, attempt: int) -> dict[str, Any]:
        """Wait for the line of an attempt in attempts.jsonl and return it."""
        self.wait_for(lambda: self.attempt_line(attempt))
        return self.attempt_line(attempt) or {}

    def finish(self, state: str = "completed", seconds: float = 240) -> dict[str, Any]:
        """Wait until the run is over, which must be in that state; return run.json."""
        self.wait_for(lambda: self.json("run.json").get("state") in OVER, seconds)
        found = self.json("run.json")
        assert found["state"] == state, (found, self.attempts)
        return found

    def ends_well(self) -> None:
        """Wait until the cluster shows what run.json says: both jobs complete, and no pod left."""
        self.wait_for(lambda: not self.pods() and not self.pods("supervisor"), 60)
        self.wait_for(lambda: "Complete" in self.conditions("job", f"{self.name}-supervisor"), 60)
        self.wait_for(lambda: self.conditions(self.kind, self.name) & {"Succeeded", "Complete", "Completed"}, 60)

    def conditions(self, kind: str, name: str) -> set[str]:
        """Return the conditions of a job that hold."""
        found = self.lab.get(f"{PATHS[kind].format(namespace=self.namespace)}/{name}")
        return {c["type"] for c in found.get("status", {}).get("conditions") or () if c["status"] == "True"}

    def wait_for(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Wait for a condition; AssertionError, with what the run says, when it does not hold in time."""
        try:
            self.lab.wait_for(condition, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.json('run.json')}{self.logs()}") from None
