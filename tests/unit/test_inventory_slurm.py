"""Asking SLURM: the calls, with commands that print what three versions do; the file road; the command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from inventory_fixtures import FIXTURES, VERSIONS, raw, slurm, slurm_with_qos

from fullft_cluster.backends import slurm_inventory
from fullft_cluster.backends.inventory import read_inventory
from fullft_cluster.cli.main import cli
from fullft_cluster.errors import SchedulerError, UsageError
from fullft_cluster.inventory import pooling
from fullft_cluster.inventory.reading import from_file


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that alone is on PATH (with the shell's own tools)."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    return bin_


def command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f'#!/bin/sh\necho "$*" >> {folder}/{name}.log\n{script}\n')
    (folder / name).chmod(0o755)


def scontrol(folder: Path, version: str) -> None:
    files = FIXTURES / f"slurm-{version}"
    command(
        folder,
        "scontrol",
        f'case "$*" in *node*) cat {files}/nodes.txt;; *partition*) cat {files}/partitions.txt;; '
        f"--version) cat {files}/version.txt;; *) exit 9;; esac",
    )


def sacctmgr(folder: Path) -> None:
    files = FIXTURES / "slurm-22.05"
    command(folder, "sacctmgr", f'case "$*" in *qos*Grp*) cat {files}/qos.txt;; *) cat {files}/associations.txt;; esac')


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_asked_the_same_three_questions(commands: Path, version: str) -> None:
    scontrol(commands, version)
    command(commands, "sacctmgr", "echo 'You are not running a supported accounting_storage plugin' >&2; exit 1")
    found = read_inventory("slurm")
    assert (found.pools, found.partitions) == (slurm(version).pools, slurm(version).partitions)
    assert found.version.startswith(version)
    assert found.qos == ()
    assert len((commands / "scontrol.log").read_text().splitlines()) == 3
    assert len((commands / "sacctmgr.log").read_text().splitlines()) == 1


def test_accounts_and_qos_where_there_are_some(commands: Path) -> None:
    scontrol(commands, "22.05")
    sacctmgr(commands)
    found = read_inventory("slurm")
    assert found.qos == slurm_with_qos().qos
    assert found.access.accounts == ("physics", "root")
    assert found.access.groups


def test_accounting_that_hangs_is_not_waited_for(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(commands, "22.05")
    command(commands, "sacctmgr", "exec sleep 60")
    monkeypatch.setattr(slurm_inventory, "ACCOUNTING_SECONDS", 0.2)
    assert read_inventory("slurm").qos == ()
    # The first question was cut short: had it been waited for, the second would have been asked.
    assert len((commands / "sacctmgr.log").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'slurm_load_node error: Unable to contact slurm controller' >&2; exit 1", "refused: slurm_load_node"),
        ("echo 'No nodes in the system'", "knows no nodes"),
        ("echo 'WARNING: maintenance tonight'", "is not a line of `scontrol show node`"),
        ("printf 'NodeName=a State=IDLE Reason=\\377\\n'; exit 3", "refused"),
    ],
)
def test_a_controller_that_answers_badly(commands: Path, script: str, words: str) -> None:
    command(commands, "scontrol", script)
    with pytest.raises(SchedulerError) as caught:
        read_inventory("slurm")
    assert words in str(caught.value)


def test_bytes_in_a_reason_that_are_no_text(commands: Path) -> None:
    command(
        commands,
        "scontrol",
        "case \"$*\" in *node*) printf 'NodeName=a Gres=gpu:h200:8 State=IDLE Partitions=x Reason=\\377\\n';; esac",
    )
    assert read_inventory("slurm").pools[0].gpu == "h200-141gb"


def test_no_slurm_here(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(commands))  # the machine's own SLURM is not meant
    with pytest.raises(SchedulerError, match="no `scontrol` on PATH"):
        read_inventory("slurm")


# --- files and the command


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("slrum", "Did you mean 'slurm'?"),
        ("no/such/file", "No such file or directory"),
        ("/dev/null", "is not a file"),
        ("/", "is not a file"),
        ("~nobody-here/x", "is not a path"),
        ("a\0b", "is not a path"),
        ("kubernetes:", "No such file or directory"),
    ],
)
def test_what_is_no_inventory(ref: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_inventory(ref)
    assert words in str(caught.value)


def test_the_command_prints_a_file_that_reads_the_same(tmp_path: Path) -> None:
    (tmp_path / "cluster.txt").write_bytes(raw("24.11", "nodes.txt") + raw("24.11", "partitions.txt"))
    done = CliRunner().invoke(cli, ["inventory", str(tmp_path / "cluster.txt"), "--json"], catch_exceptions=False)
    assert from_file(done.stdout.encode(), "stdout") == slurm("24.11")


def test_the_command_shows_pools_and_partitions(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_bytes(slurm_with_qos().to_json())
    runner = CliRunner(env={"COLUMNS": "160"})
    text = runner.invoke(cli, ["inventory", str(tmp_path / "cluster.json")], catch_exceptions=False).stdout
    row = next(line for line in text.splitlines() if "sxm[1-2]" in line)
    assert re.split(r"  +", row.strip())[:5] == ["2", "1", "1", "4 x a100", "a100-40gb or a100-80gb"]
    gpu = next(line for line in text.splitlines() if line.startswith("gpu*"))
    assert re.split(r"  +", gpu.strip()) == ["gpu*", "2d 00h", "8", "3", "part-gpu", "up", "all"]
    assert "a100_3g.20gb is a slice of a GPU (MIG), and training takes whole ones." in text


# --- ten thousand nodes


def many(count: int) -> bytes:
    """The text of a large cluster: every node of another name, and each in one of a few states."""
    line = raw("24.11", "nodes.txt").decode().splitlines()[-1]
    states = ("IDLE", "MIXED", "ALLOCATED", "IDLE+DRAIN", "DOWN*")
    nodes = (
        re.sub(r"=sxm2\b", f"=gpu{number:05d}", line).replace("State=IDLE", f"State={states[number % 5]}", 1)
        for number in range(count)
    )
    return "\n".join(nodes).encode() + b"\n" + raw("24.11", "partitions.txt")


def test_ten_thousand_nodes_are_judged_once_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node costs the cutting of its line; what is worked out of it is worked out for each kind of line."""
    judged: list[str] = []
    real = {name: getattr(pooling, name) for name in ("condition", "gpu_counts", "match")}
    for name, function in real.items():
        monkeypatch.setattr(
            pooling, name, lambda *args, function=function: judged.append(function.__name__) or function(*args)
        )
    sizes = []
    for count in (1000, 10_000):
        judged.clear()
        (pool,) = (pool for pool in from_file(many(count), "large.txt").pools if "gpu" in pool.names)
        assert (pool.nodes, pool.nodes_up, pool.nodes_idle) == (count, count * 3 // 5, count // 5)
        sizes.append((len(judged), len(from_file(many(count), "large.txt").to_json()) // 100))
    assert sizes[0] == sizes[1]
    assert sizes[0][0] < 20
