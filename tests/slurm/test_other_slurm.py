"""SLURM 20.11 and 24.11, really running: the whole road on the newer one, discovery on both."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_other
from slurm_big import CHILD
from slurm_other import ROOT, OtherLab
from slurm_run import MAIN

pytestmark = [pytest.mark.slurm, pytest.mark.nightly]

VERSIONS = {"bullseye": "20.11", "trixie": "24.11"}


def require(reason: str | None) -> None:
    if reason and os.environ.get("FULLFT_CLUSTER_REQUIRE_SLURM") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(params=VERSIONS)
def other_lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OtherLab]:
    require(slurm_other.missing())
    lab = OtherLab(request.param, tmp_path)
    try:
        lab.up()
        assert lab.version().startswith(VERSIONS[request.param])
        yield lab
    finally:
        lab.down()


def test_discovery(other_lab: OtherLab, tmp_path: Path) -> None:
    def cli(*arguments: str) -> str:
        command = [sys.executable, "-c", MAIN, *arguments]
        env = {**os.environ, "PATH": f"{other_lab.bin}:{os.environ['PATH']}"}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    subprocess.run([other_lab.bin / "scontrol", "update", "nodename=node4", "state=drain", "reason=x"], check=True)
    found = json.loads(cli("inventory", "--json"))
    assert found["version"] == other_lab.version()
    (pool,) = found["pools"]
    assert (pool["gpu_type"], pool["gpus_per_node"], pool["nodes"], pool["nodes_up"]) == ("a100", 8, 4, 3)
    assert (pool["names"], pool["cpus_per_node"]) == ("node[1-4]", 96)
    assert [partition["name"] for partition in found["partitions"]] == ["gpu", "high"]
    plan = json.loads(cli("plan", "--model", "65b", "--inventory", "slurm", "--max-steps", "100", "--json"))
    assert plan["gpus_per_node"] == 8
    assert plan["nodes"] <= 3


@pytest.mark.timeout(3600)
def test_the_whole_road_on_24_11() -> None:
    """All tests of this folder where SLURM is 24.11: submit, warning, requeue, done, power loss, inventory."""
    require(slurm_other.missing(with_python=True))
    pytest_there = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "tests/slurm")
    version_first = 'slurmctld -V; exec "$@"'
    command, env = slurm_other.enter(
        "trixie", "run", "bash", "-c", version_first, "-", *pytest_there, env={"FULLFT_CLUSTER_REQUIRE_SLURM": "1"}
    )
    done = subprocess.run(
        [*CHILD, *command], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert re.match(r"slurm\S* 24\.11", done.stdout)
    summary = done.stdout.splitlines()[-1]
    assert re.search(r"\d+ passed", summary)
    assert "skipped" not in summary, done.stdout
