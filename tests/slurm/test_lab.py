"""The lab is a cluster: what the other tests in this folder take for granted about it."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_lab import Lab, wait_until

pytestmark = pytest.mark.slurm

WHO = "#!/bin/bash\nsrun -l bash -c 'echo $(hostname) $CUDA_VISIBLE_DEVICES; getent hosts node1 node2'\n"

TWO_LIVES = """#!/bin/bash
echo life ${SLURM_RESTART_COUNT:-0} $SLURM_JOB_NODELIST
if [ -z "$SLURM_RESTART_COUNT" ]; then sleep 120; fi
"""


def test_a_job_on_two_nodes_sees_names_addresses_and_gpus(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = lab.sbatch("-N2", "--ntasks-per-node=1", "--gpus-per-node=a100:2", f"--output={out}", script=WHO)
    assert lab.wait(job)["JobState"] == "COMPLETED"
    lines = out.read_text().splitlines()
    assert {"0: node1 0,1", "1: node2 0,1"} <= set(lines)
    assert all(
        any(line.endswith(f" {node}") for line in lines if line.startswith(rank))
        for rank, node in [("0", "node2"), ("1", "node1")]
    )


def test_a_node_without_power_ends_the_job_as_node_fail_and_it_runs_again_elsewhere(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = lab.sbatch("-N2", "--requeue", "--open-mode=append", f"--output={out}", script=TWO_LIVES)
    lab.wait(job, "RUNNING")
    batch_host, other = lab.nodes_of(job)
    assert lab.job(job)["BatchHost"] == batch_host
    wait_until("the first life", lambda: out.is_file() and out.read_text() == "life 0 node[1-2]\n", 30)
    lab.crash(other)
    lab.down_at_once(other, "power")
    fields = lab.wait(job, "COMPLETED", seconds=90)
    assert fields["Restarts"] == "1"
    assert other not in lab.nodes_of(job)
    assert "life 1 " in out.read_text()
    if lab.accounting:
        assert "NODE_FAIL" in lab.run("sacct", "-D", "-X", "-n", "-o", "State", "-j", job)
