"""An inventory from running controllers: one of four nodes with accounting, one of 10,000 nodes."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from slurm_big import NODES, BigLab
from slurm_lab import Lab

from fullft_cluster.backends.inventory import read_inventory
from fullft_cluster.cli.main import cli
from fullft_cluster.config import Config, SlurmConfig
from fullft_cluster.errors import SchedulerError
from fullft_cluster.hardware import load_cluster
from fullft_cluster.inventory import Inventory, sites
from fullft_cluster.inventory.reading import from_file

pytestmark = pytest.mark.slurm


def reached(monkeypatch: pytest.MonkeyPatch, lab: Lab | BigLab) -> None:
    """From here on SLURM's commands speak to that cluster."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, lab.env[name])


def test_a_cluster_with_accounting(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    reached(monkeypatch, lab)
    if lab.accounting:
        lab.run("sacctmgr", "-i", "add", "qos", "few", "MaxWall=02:00:00", "MaxTRESPerJob=gres/gpu=16")
    try:
        lab.run("scontrol", "update", "nodename=node4", "state=drain", "reason=fan State=IDLE")
        found = read_inventory("slurm")
    finally:
        lab.run("scontrol", "update", "nodename=node4", "state=resume")
        if lab.accounting:
            lab.run("sacctmgr", "-i", "delete", "qos", "few")
    (pool,) = found.pools
    assert (pool.gpu_type, pool.gpus_per_node, pool.nodes, pool.nodes_up) == ("a100", 8, 4, 3)
    assert (pool.names, pool.partitions) == ("node[1-4]", ("gpu", "high"))
    assert found.version.split(".")[0].isdigit()
    assert [(p.name, p.default, p.time_limit_seconds) for p in found.partitions] == [
        ("gpu", True, None),
        ("high", False, None),
    ]
    if lab.accounting:
        few = next(qos for qos in found.qos if qos.name == "few")
        assert (few.max_wall_seconds, few.gpus) == (7200, {"": 16})
        site = sites(found, load_cluster("a100-80gb"), Config(slurm=SlurmConfig(qos="few")))[0]
        assert (site.cluster.max_nodes, site.time_limit_seconds) == (2, 7200)


def test_what_sbatch_is_given_for_a_site_is_what_it_takes(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    reached(monkeypatch, lab)
    site = sites(read_inventory("slurm"), load_cluster("a100-80gb"), Config())[0]
    cluster = site.cluster
    options = (
        f"--partition={site.partition}",
        f"--nodes={cluster.max_nodes}",
        f"--gpus-per-node={cluster.slurm_gpu_type}:{cluster.gpus_per_node}",
        f"--cpus-per-task={cluster.cpus_per_node}",
        f"--mem={int(cluster.host_memory_gib)}G",
        "--ntasks-per-node=1",
    )
    lab.run("sbatch", "--test-only", *options, stdin="#!/bin/bash\ntrue\n")
    with pytest.raises(RuntimeError):
        lab.run("sbatch", "--test-only", *options, f"--nodes={cluster.max_nodes + 1}", stdin="#!/bin/bash\ntrue\n")


def test_ten_thousand_nodes_are_a_few_pools(big_lab: BigLab, monkeypatch: pytest.MonkeyPatch) -> None:
    reached(monkeypatch, big_lab)
    found = read_inventory("slurm")
    by_type: dict[str | None, list[int]] = {}
    for pool in found.pools:
        numbers = (pool.nodes, pool.nodes_up, pool.nodes_idle or 0)
        sums = by_type.setdefault(pool.gpu_type, [0, 0, 0])
        by_type[pool.gpu_type] = [one + other for one, other in zip(sums, numbers, strict=True)]
    # 10 drained, 10 down, 210 in use: see BigLab
    assert by_type == {"a100": [6000, 5980, 5770], "h100": [3000, 3000, 3000], None: [1000, 1000, 1000]}
    assert sum(NODES.values()) == 10_000
    assert len(found.pools) < 10
    assert len(found.to_json()) < 20_000
    site = sites(found, load_cluster("a100-80gb"), Config())[0]
    assert (site.partition, site.cluster.max_nodes, site.time_limit_seconds) == ("a100", 5980, 2 * 86400)


def test_a_plan_is_laid_on_one_of_them(big_lab: BigLab, monkeypatch: pytest.MonkeyPatch) -> None:
    reached(monkeypatch, big_lab)
    flags = ["--model", "65b", "--inventory", "slurm", "--set", "slurm.partition=h100", "--max-steps", "100"]
    done = CliRunner().invoke(cli, ["plan", *flags, "--json"], catch_exceptions=False)
    plan = json.loads(done.stdout)
    assert (plan["gpu"], plan["gpus_per_node"]) == ("h100-80gb", 8)
    assert 1 < plan["nodes"] <= 64


def test_its_file_is_as_good_as_the_cluster(big_lab: BigLab, monkeypatch: pytest.MonkeyPatch) -> None:
    reached(monkeypatch, big_lab)
    done = CliRunner().invoke(cli, ["inventory", "--json"], catch_exceptions=False)
    assert from_file(done.stdout.encode(), "stdout") == read_inventory("slurm")
    shown = CliRunner().invoke(cli, ["inventory"], catch_exceptions=False).stdout
    assert "6000" in shown or "5996" in shown  # debug has four of them


def test_text_and_json_of_a_large_cluster_agree(big_lab: BigLab) -> None:
    text = big_lab.run("scontrol", "show", "node", "-o") + "\n" + big_lab.run("scontrol", "show", "partition", "-o")
    own, told = from_file(text.encode(), "text"), from_file(big_lab.run("sinfo", "--json").encode(), "json")

    def nodes(inventory: Inventory) -> set[tuple[str, int, int]]:
        return {(pool.names, pool.nodes_up, pool.nodes_idle or 0) for pool in inventory.pools}

    assert nodes(own) == nodes(told)


def test_a_controller_that_does_not_answer(big_lab: BigLab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reached(monkeypatch, big_lab)
    with socket.create_server(("127.0.0.1", 0)) as probe:  # closed again: nobody listens there
        port = probe.getsockname()[1]
    conf = re.sub(r"SlurmctldPort=\d+", f"SlurmctldPort={port}", big_lab.conf.read_text())
    (tmp_path / "slurm.conf").write_text(conf.replace("MessageTimeout=600", "MessageTimeout=2"))
    (tmp_path / "gres.conf").write_text("")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(SchedulerError, match="Unable to contact slurm controller") as caught:
        read_inventory("slurm")
    assert caught.value.exit_code == 4
