"""Inventories that nobody's scheduler wrote: refused in words, or read, and never a traceback."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inventory_fixtures import raw, slurm_with_qos
from test_inventory_kubernetes import listed, node

from fullft_cluster.config import Config
from fullft_cluster.errors import UsageError
from fullft_cluster.hardware import load_cluster
from fullft_cluster.inventory import sites
from fullft_cluster.inventory.reading import from_file

A100 = load_cluster("a100-80gb")
TEXT = raw("24.11", "nodes.txt") + raw("24.11", "partitions.txt")
SEEDS = {
    "text": TEXT,
    "sinfo-22.05": raw("22.05", "sinfo.json"),
    "nodes-24.11": raw("24.11", "nodes.json")[:20000],
    "kubernetes": listed(node("n1"), node("n2")),
    "own": slurm_with_qos().to_json(),
}
NUMBERS = ["0", "-1", "1e999", "NaN", "9" * 4400, "²", "٣", "1.5", "", "UNLIMITED", "null", "99999999999-00:00:00"]


def read_and_lay(data: bytes) -> None:
    """Read a file and lay a profile on it, as `plan --inventory` does; errors of the user are fine."""
    try:
        for site in sites(from_file(data, "FILE"), A100, Config()):
            assert site.cluster.max_nodes >= 1
            assert site.cluster.gpus_per_node >= 1
            assert site.cluster.cpus_per_node >= 1
            assert site.cluster.host_memory_gib > 0
    except UsageError as error:
        assert error.problems


@pytest.mark.parametrize("seed", SEEDS)
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
def test_bytes_that_were_changed(seed: str, data: st.DataObject) -> None:
    text = bytearray(SEEDS[seed])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 30))
        text[start : start + length] = data.draw(st.binary(max_size=12))
    read_and_lay(bytes(text))


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_are_none(number: str) -> None:
    text = TEXT.decode()
    for key in ("CPUTot", "CPUEfctv", "RealMemory", "MemSpecLimit", "CoreSpecCount", "ThreadsPerCore", "MaxTime"):
        read_and_lay(text.replace(f" {key}=", f" {key}={number} x=").encode())
    for key in ("MaxNodes", "TotalNodes", "MaxCPUsPerNode", "MaxMemPerNode", "PriorityTier", "DefaultTime"):
        read_and_lay(text.replace(f" {key}=", f" {key}={number} x=").encode())
    for old, new in (("gpu:a100:8", f"gpu:a100:{number}"), ("gpu:4", f"gpu:{number}")):
        read_and_lay(text.replace(old, new).encode())
    for there in ("cpu", "memory", "nvidia.com/gpu"):
        read_and_lay(listed(node("n1", allocatable={there: number})))
    read_and_lay(listed(node("n1", mib=number)))


@pytest.mark.parametrize("value", [-1, 10**30, 1.5, "8", None, [], {}])
def test_values_of_our_own_file_that_are_none(value: Any) -> None:
    own = json.loads(slurm_with_qos().to_json())
    for key in own["pools"][0]:
        changed = json.loads(json.dumps(own))
        for pool in changed["pools"]:
            pool[key] = value
        read_and_lay(json.dumps(changed).encode())
    for key in own["partitions"][0]:
        changed = json.loads(json.dumps(own))
        for partition in changed["partitions"]:
            partition[key] = value
        read_and_lay(json.dumps(changed).encode())


def test_nesting_without_end() -> None:
    read_and_lay(b'{"pools":' + b"[" * 100_000)
    read_and_lay(b'{"a":' * 100_000)
