"""Reading what schedulers print: three versions of SLURM, really run, and Kubernetes."""

from __future__ import annotations

import json

import msgspec
import pytest
from inventory_fixtures import FIXTURES, VERSIONS, raw, slurm, slurm_with_qos

from fullft_cluster.errors import UsageError
from fullft_cluster.inventory import Inventory, Partition, Pool
from fullft_cluster.inventory.hostlist import compress
from fullft_cluster.inventory.pooling import condition, gpu_counts
from fullft_cluster.inventory.reading import from_file
from fullft_cluster.inventory.slurm_text import field, nodes


def pool(inventory: Inventory, name: str, gpu_type: str | None = None) -> Pool:
    """The pool that a node is in."""
    found = [p for p in inventory.pools if name in p.names and (gpu_type is None or p.gpu_type == gpu_type)]
    assert len(found) == 1, found
    return found[0]


def partition(inventory: Inventory, name: str) -> Partition:
    return next(p for p in inventory.partitions if p.name == name)


# --- text, three versions


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_tells_the_same_nodes(version: str) -> None:
    inventory = slurm(version)
    told = {
        (p.gpu_type, p.gpus_per_node, p.nodes, p.nodes_up, p.nodes_idle, p.nodes_reserved, p.partitions)
        for p in inventory.pools
    }
    assert told == {
        ("a100", 8, 1, 1, 0, 0, ("gpu", "long", "debug", "all")),  # dgx01: all of it is in use
        ("a100", 8, 1, 1, 0, 0, ("gpu", "long", "all")),  # dgx02: half
        ("a100", 8, 2, 0, 0, 0, ("gpu", "all")),  # dgx03 drained, dgx04 down
        ("a100", 4, 2, 1, 1, 0, ("gpu", "long", "all")),  # sxm1 draining
        ("nvidia_a100-pcie-40gb", 4, 1, 0, 0, 0, ("gpu", "all")),  # pcie1 failed
        ("nvidia_a100-pcie-40gb", 4, 1, 1, 1, 0, ("gpu", "closed", "all")),
        ("nvidia_h100_80gb_hbm3", 8, 1, 1, 0, 1, ("hopper", "all")),  # reserved
        ("a100", 2, 1, 1, 1, 0, ("hopper", "all")),  # mix1, and
        ("a100_3g.20gb", 4, 1, 1, 1, 0, ("hopper", "all")),  # its slices
        (None, 4, 2, 1, 1, 0, ("debug", "all")),  # any2: maintenance
        (None, 0, 3, 2, 2, 0, ("cpu", "all")),
        ("a100", 8, 10, 10, 10, 0, ("cloud", "all")),  # powered down: started when a job comes
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_system_keeps_of_a_node_is_not_offered(version: str) -> None:
    dgx = pool(slurm(version), "dgx01")
    # 2 x 64 x 2 threads less CoreSpecCount 4 of 2 threads; RealMemory 2051000 MiB less MemSpecLimit 16384.
    assert dgx.cpus_per_node == 248
    assert dgx.host_memory_gib == pytest.approx((2051000 - 16384) / 1024, abs=0.01)


@pytest.mark.parametrize("version", VERSIONS)
def test_partitions_are_told_the_same_by_every_version(version: str) -> None:
    inventory = slurm(version)
    assert [p.name for p in inventory.partitions] == ["gpu", "long", "debug", "hopper", "cpu", "cloud", "closed", "all"]
    gpu = partition(inventory, "gpu")
    assert (gpu.default, gpu.time_limit_seconds, gpu.default_time_seconds) == (True, 2 * 86400, 3600)
    assert (gpu.max_nodes, gpu.nodes, gpu.priority_tier, gpu.preempt_mode) == (3, 8, 5, "OFF")
    long = partition(inventory, "long")
    assert (long.default, long.time_limit_seconds, long.max_nodes) == (False, 7 * 86400, None)
    assert (long.allow_accounts, long.allow_qos) == (("physics", "biology"), ("long-jobs", "normal"))
    assert partition(inventory, "hopper").deny_accounts == ("chemistry",)
    assert partition(inventory, "hopper").time_limit_seconds is None
    debug = partition(inventory, "debug")
    assert (debug.max_cpus_per_node, debug.max_memory_gib) == (32, pytest.approx(195.3125))
    assert (gpu.max_cpus_per_node, gpu.max_memory_gib) == (None, None)
    assert not partition(inventory, "closed").up
    assert (partition(inventory, "all").root_only, partition(inventory, "all").hidden) == (True, True)


def test_a_partition_names_its_own_qos() -> None:
    assert partition(slurm("22.05"), "gpu").qos == "part-gpu"
    assert partition(slurm("22.05"), "long").qos is None


def test_qos_and_associations() -> None:
    inventory = slurm_with_qos()
    by_name = {qos.name: qos for qos in inventory.qos}
    assert by_name["part-gpu"].gpus == {"": 16}  # the least of 24 a group, 16 a job, 24 a user
    assert (by_name["part-gpu"].max_nodes, by_name["part-gpu"].max_wall_seconds) == (2, 2 * 86400)
    assert (by_name["normal"].gpus, by_name["normal"].max_wall_seconds) == ({}, None)
    assert by_name["long-jobs"].max_wall_seconds == 7 * 86400
    assert inventory.access.accounts == ("physics", "root")
    assert inventory.access.qos == ("long-jobs", "normal")


def test_free_text_of_a_node_is_not_taken_for_its_fields() -> None:
    line = "NodeName=n1 CPUTot=8 Gres=gpu:a100:8 RealMemory=1000 State=DOWN Partitions=a Reason=see Gres=x State=IDLE"
    assert field(line, "State") == "DOWN"
    assert field(line, "Tot") == ""
    (node,) = nodes(line)
    assert (node.gres, node.state, node.partitions) == ("gpu:a100:8", "DOWN", "a")


def test_records_over_several_lines_are_the_same() -> None:
    """What `scontrol show node` and `scontrol show partition` print without -o."""
    text = """NodeName=gpu1 Arch=x86_64 CoresPerSocket=8
   CPUAlloc=0 CPUEfctv=64 CPUTot=64 CPULoad=0.84
   AvailableFeatures=A100-80GB
   ActiveFeatures=A100-80GB
   Gres=gpu:A100:8(S:0-1)
   NodeAddr=10.4.0.11 NodeHostName=gpu1 Version=22.05.8
   OS=Linux 6.12.20+rpt-rpi-v8 #1 SMP PREEMPT Debian 1:6.12.20-1+rpt1~bpo12+1 (2025-03-19)
   RealMemory=409600 AllocMem=0 FreeMem=1086 Sockets=1 Boards=1
   State=IDLE+DRAIN ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A
   Partitions=general,debug
   Reason=State=IDLE [root@2025-04-04T12:43:13]

PartitionName=general
   AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL
   Default=YES MaxNodes=UNLIMITED MaxTime=1-00:00:00
   State=UP TotalCPUs=64 TotalNodes=1
"""
    inventory = from_file(text.encode(), "cluster.txt")
    (one,) = inventory.pools
    assert (one.gpu, one.nodes, one.nodes_up, one.partitions) == ("a100-80gb", 1, 0, ("general", "debug"))
    assert (one.cpus_per_node, one.host_memory_gib) == (64, 400)
    assert partition(inventory, "general").time_limit_seconds == 86400


# --- JSON


def test_json_of_24_11_tells_the_same_nodes_as_its_text() -> None:
    assert set(from_file(raw("24.11", "nodes.json"), "nodes.json").pools) == set(slurm("24.11").pools)
    assert from_file(raw("24.11", "nodes.json"), "nodes.json").version == "24.11.5"


def test_json_of_sinfo_24_11_tells_nodes_and_partitions() -> None:
    inventory, text = from_file(raw("24.11", "sinfo.json"), "sinfo.json"), slurm("24.11")
    # sinfo neither shows root's partition nor what the system keeps of a node.
    shown = {(p.gpu_type, p.gpus_per_node, p.nodes, p.nodes_up, p.nodes_idle, p.features) for p in inventory.pools}
    assert shown == {(p.gpu_type, p.gpus_per_node, p.nodes, p.nodes_up, p.nodes_idle, p.features) for p in text.pools}
    gpu, long = partition(inventory, "gpu"), partition(inventory, "long")
    assert (gpu.time_limit_seconds, gpu.default_time_seconds, gpu.max_nodes) == (2 * 86400, 3600, 3)
    assert (long.time_limit_seconds, long.allow_accounts) == (7 * 86400, ("physics", "biology"))
    assert partition(inventory, "hopper").time_limit_seconds is None
    assert not partition(inventory, "closed").up


def test_json_of_22_05_tells_the_same_nodes_as_its_text() -> None:
    inventory, text = from_file(raw("22.05", "sinfo.json"), "sinfo.json"), slurm("22.05")
    # It does not say what CoreSpecCount and MemSpecLimit keep.
    told = {msgspec.structs.replace(p, cpus_per_node=0, host_memory_gib=0) for p in inventory.pools}
    assert told == {msgspec.structs.replace(p, cpus_per_node=0, host_memory_gib=0) for p in text.pools}
    assert (inventory.version, inventory.partitions) == ("22.05.8", ())


def test_partitions_in_the_json_of_24_11_are_those_of_its_text() -> None:
    both = json.loads(raw("24.11", "nodes.json")) | json.loads(raw("24.11", "partitions.json"))
    inventory, text = from_file(json.dumps(both).encode(), "both.json"), slurm("24.11")
    silent = {"default": False, "hidden": False, "root_only": False, "preempt_mode": None}
    assert inventory.partitions == tuple(msgspec.structs.replace(p, **silent) for p in text.partitions)


# --- files


def test_an_inventory_survives_its_file() -> None:
    inventory = slurm_with_qos(groups=("users",))
    assert from_file(inventory.to_json(), "inventory.json") == inventory


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "is empty"),
        (b"hello", "is not an inventory"),
        (b"{", "is not an inventory"),
        (b"[1, 2]", "is not an inventory"),
        (b'{"jobs": []}', "of no kind that lists nodes"),
        (b'{"pools": [], "source": "slurm", "colour": "red"}', "unknown field `colour`"),
        (b'{"pools": [{}], "source": "slurm"}', "missing required field"),
        (b'{"nodes": [{"name": 3}]}', "is not what `scontrol show nodes --json`"),
        (b'{"items": [{}]}', "is not a list of nodes"),
        (b"NodeName=a State=IDLE\nwhat is this", "is not a line of `scontrol show node`"),
        (b"NodeName=a Arch=x86_64\n", "has no State"),
        (b"\xff\xfe\x00", "is not an inventory"),
    ],
)
def test_a_file_that_is_none_is_refused_with_the_way_to_make_one(text: bytes, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_file(text, "FILE")
    (problem,) = caught.value.problems
    assert words in problem.what
    assert problem.where == "FILE"
    assert problem.fix


def test_no_fixture_names_the_machine_that_made_it() -> None:
    for path in FIXTURES.glob("*/*"):
        text = path.read_text()
        assert "/tmp/" not in text and "/root" not in text and "/work" not in text, path


# --- the parts


@pytest.mark.parametrize(
    ("state", "up", "reserved", "idle"),
    [
        ("IDLE", True, False, True),
        ("idle~", True, False, True),  # powered down by SLURM, which starts it for a job
        ("IDLE+CLOUD+POWERED_DOWN", True, False, True),
        ("MIXED", True, False, False),
        ("ALLOCATED", True, False, False),
        ("IDLE+COMPLETING", True, False, False),
        ("IDLE+PLANNED", True, False, False),
        ("UNKNOWN", True, False, False),
        ("IDLE+RESERVED", True, True, False),
        ("RESERVED", True, True, False),
        ("IDLE+DRAIN", False, False, False),
        ("MIXED+DRAIN", False, False, False),
        ("drained%", False, False, False),
        ("idle*", False, False, False),  # does not answer
        ("IDLE+NOT_RESPONDING", False, False, False),
        ("idle$", False, False, False),
        ("MAINT", False, False, False),
        ("IDLE+MAINTENANCE+RESERVED", False, False, False),
        ("DOWN*+CLOUD", False, False, False),
        ("IDLE+FAIL", False, False, False),
        ("FUTURE", False, False, False),
        ("INVAL", False, False, False),
        ("mixed#", True, False, False),
        ("idle@", True, False, True),
    ],
)
def test_states(state: str, up: bool, reserved: bool, idle: bool) -> None:
    assert condition(state) == (up, reserved, idle)


@pytest.mark.parametrize(
    ("gres", "counts"),
    [
        ("gpu:a100:8(S:0-1)", {"a100": 8}),
        ("gpu:4", {"": 4}),
        ("gpu", {"": 1}),
        ("gpu:a100", {"a100": 1}),
        ("gpu:a100:2,gpu:a100_3g.20gb:4", {"a100": 2, "a100_3g.20gb": 4}),
        ("gpu:a100:4(S:0),gpu:a100:4(S:1)", {"a100": 8}),
        ("gpu:nvidia_a100-pcie-40gb:4(S:0,2)", {"nvidia_a100-pcie-40gb": 4}),
        ("shard:a100:64,gpu:a100:8,mps:800,nic:2", {"a100": 8}),
        ("license:3", {}),
        ("", {}),
    ],
)
def test_gres(gres: str, counts: dict[str, int]) -> None:
    assert gpu_counts(gres) == counts


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["n1"], "n1"),
        (["n2", "n1", "n3"], "n[1-3]"),
        (["gpu001", "gpu002", "gpu007"], "gpu[001-002,007]"),
        (["n9", "n10", "n11"], "n9,n[10-11]"),
        (["r1n05", "r1n06", "r2n05"], "r1n[05-06],r2n05"),
        (["login", "a1-ib", "a2-ib"], "login,a[1-2]-ib"),
    ],
)
def test_names_are_abbreviated_as_slurm_does(names: list[str], text: str) -> None:
    assert compress(names) == text


def test_names_without_a_pattern_are_cut_off() -> None:
    assert compress(f"node-{number:x}x" for number in range(0, 10**6, 9973)).endswith(",...")
