"""The life of a run by its commands: submitted, looked at, cancelled with a checkpoint, resumed, deleted."""

from __future__ import annotations

import json

import pytest
from kube_lab import Lab
from kube_run import SAVE_STEPS, STEPS, Place, Run

pytestmark = pytest.mark.kubernetes


def test_submit_status_logs_cancel_resume_delete(lab: Lab, place: Place, undisturbed: Run, namespace: str) -> None:
    def cli(*arguments: str, code: int = 0) -> str:
        return place.cli(namespace, *arguments, "--backend", "kubernetes", code=code).stdout

    run = place.submit("pytorchjob", namespace, "lived")
    step = run.frozen_at(1, SAVE_STEPS + 2)
    run.wait_for(lambda: (json.loads(cli("status", "lived", "--json"))["step"] or 0) >= step)
    status = json.loads(cli("status", "lived", "--json"))
    assert (status["state"], status["attempt"], status["backend"]) == ("running", 1, "kubernetes")
    assert status["last_checkpoint_step"] == SAVE_STEPS and len(status["nodes"]) == 2 and status["loss"] is not None
    assert [(one["name"], one["state"]) for one in json.loads(cli("list", "--json"))] == [("lived", "running")]
    shown = cli("logs", "lived")
    assert "attempt 1, node 1" in shown and "supervisor" in shown
    cli("resume", "lived", code=2)  # it runs
    cli("delete", "lived", code=2)

    run.thaw()
    cli("cancel", "lived")
    run.finish("cancelled")
    assert (run.attempts[0]["cause"], run.attempts[0]["decision"]) == ("cancelled", "stop")
    kept = run.attempts[0]["committed_step"]
    assert step <= kept < STEPS, "cancelled after a checkpoint, and before the end"
    run.wait_for(lambda: json.loads(cli("status", "lived", "--json"))["state"] == "cancelled")
    run.wait_for(lambda: not run.pods())

    assert cli("resume", "lived").strip() == "lived"
    run.wait_for(lambda: run.json("run.json").get("attempt") == 2)
    run.finish()
    assert [line["cause"] for line in run.attempts] == ["cancelled", "done"]
    assert run.attempts[1]["first_step"] == kept + 1
    assert run.losses() == undisturbed.losses() and run.weights() == undisturbed.weights() != {}
    run.ends_well()
    run.wait_for(lambda: json.loads(cli("status", "lived", "--json"))["state"] == "completed")
    cli("resume", "lived", code=2)  # it is completed

    cli("delete", "lived")
    run.wait_for(lambda: not left(lab, namespace))
    assert run.weights() == undisturbed.weights(), "the run directory on a volume of the user's is the user's"


def left(lab: Lab, namespace: str) -> list[str]:
    """Return what is left of the run in the cluster."""
    kinds = "pytorchjobs,jobs,pods,configmaps,services,networkpolicies,serviceaccounts,roles,rolebindings"
    found = lab.kubectl(
        "get", kinds, "--selector=app.kubernetes.io/instance=lived", "--output=name", namespace=namespace
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.split()
