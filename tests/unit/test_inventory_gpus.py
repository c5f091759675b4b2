"""A scheduler's words for a GPU, as sites and NVIDIA's tools write them, and the GPU in our table."""

from __future__ import annotations

import pytest

from fullft_cluster.hardware import CPU, Gpu, gpus
from fullft_cluster.inventory.gpu_names import match

TABLE = gpus()


@pytest.mark.parametrize(
    ("word", "gpu"),
    [
        # NVML's names, as AutoDetect=nvml (lower case) and gpu-feature-discovery write them
        ("nvidia_a100-sxm4-80gb", "a100-80gb"),
        ("NVIDIA-A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA-A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA-A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA-A100-80GB-PCIe", "a100-80gb-pcie"),
        ("nvidia_a100_80gb_pcie", "a100-80gb-pcie"),
        ("NVIDIA-A800-SXM4-80GB", "a800-80gb"),
        ("NVIDIA-H100-80GB-HBM3", "h100-80gb"),
        ("nvidia_h100_80gb_hbm3", "h100-80gb"),
        ("NVIDIA-H100-PCIe", "h100-80gb-pcie"),
        ("NVIDIA-H100-NVL", "h100-nvl-94gb"),
        ("NVIDIA-H200", "h200-141gb"),
        ("nvidia_h200_nvl", "h200-nvl-141gb"),
        ("NVIDIA-GH200-480GB", "gh200-96gb"),
        ("NVIDIA-B200", "b200-180gb"),
        ("NVIDIA-L40S", "l40s-48gb"),
        ("NVIDIA-L40", "l40-48gb"),
        ("NVIDIA-L4", "l4-24gb"),
        ("NVIDIA-A10G", "a10g-24gb"),
        ("NVIDIA-A10", "a10-24gb"),
        ("NVIDIA-A40", "a40-48gb"),
        ("NVIDIA-RTX-A6000", "a6000-48gb"),
        ("NVIDIA-RTX-6000-Ada-Generation", "rtx-6000-ada-48gb"),
        ("NVIDIA-GeForce-RTX-3090", "rtx-3090-24gb"),
        ("Tesla-V100-SXM2-32GB", "v100-32gb"),
        # what sites write
        ("a100_80gb", "a100-80gb"),
        ("A100-SXM4-80GB", "a100-80gb"),
        ("a100-80", "a100-80gb"),
        ("a10080gb", "a100-80gb"),
        ("A100-40G", "a100-40gb"),
        ("h100nvl", "h100-nvl-94gb"),
        ("h200", "h200-141gb"),
        ("rtx3090", "rtx-3090-24gb"),
        ("tesla_v100-sxm2-32gb", "v100-32gb"),
    ],
)
def test_a_name_that_says_enough(word: str, gpu: str) -> None:
    assert match(word, TABLE).gpu == gpu


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("a100_3g.20gb", "a slice of a GPU"),
        ("nvidia_h100_80gb_hbm3_3g.40gb", "a slice of a GPU"),
        ("nvidia_h100_nvl_1g.24gb", "a slice of a GPU"),
        ("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "a slice of a GPU"),
        ("NVIDIA-A100-SXM4-80GB-SHARED", "shared by time slices"),
        ("rtx6000", "no GPU in configs"),  # Turing, 24 GB: not the Ada of that name
        ("mi250x", "no GPU in configs"),
        ("gb200", "no GPU in configs"),
        ("t4", "no GPU in configs"),
        ("gpu", "no GPU in configs"),
        ("a100-20gb", "a memory that no a100"),
        ("Tesla-V100-SXM2-16GB", "a memory that no v100"),
    ],
)
def test_a_name_that_is_none_of_ours_comes_with_the_reason(word: str, reason: str) -> None:
    found = match(word, TABLE)
    assert (found.gpu, found.candidates) == (None, ())
    assert reason in found.note


def test_a_name_without_memory_may_be_several() -> None:
    found = match("a100", TABLE)
    assert found.gpu is None
    assert found.candidates[:2] == ("a100-40gb", "a100-80gb")
    assert "a100 may be a100-40gb, a100-80gb" in found.note


def test_the_nodes_features_say_the_memory() -> None:
    assert match("a100", TABLE, ["ib", "a100_80gb"]).gpu == "a100-80gb"
    assert match("A100", TABLE, ["A100-40GB"]).gpu == "a100-40gb"
    assert match("a100", TABLE, ["gpu_mem_40gb"]).gpu == "a100-40gb"
    assert match("a100", TABLE, ["80g", "icelake"]).gpu == "a100-80gb"


def test_features_about_something_else_do_not() -> None:
    assert match("a100", TABLE, ["ram512gb", "ssd-80gb", "h100_80gb"]).gpu is None
    assert match("a100", TABLE, ["40gb", "80gb"]).gpu is None  # contradictory


def test_the_devices_own_memory_counts_before_all() -> None:
    assert match("NVIDIA-A100", TABLE, memory_gib=81920 / 1024).gpu == "a100-80gb"
    assert match("NVIDIA-A100", TABLE, memory_gib=40960 / 1024).gpu == "a100-40gb"
    assert match("NVIDIA-H100", TABLE, memory_gib=95830 / 1024).gpu == "h100-nvl-94gb"
    assert match("NVIDIA-A100", TABLE, memory_gib=20480 / 1024).candidates == ()


def test_gpus_without_a_type_are_known_by_their_features_or_not() -> None:
    assert match(None, TABLE, ["dgx", "a100_80gb"]).gpu == "a100-80gb"
    assert match(None, TABLE, ["h100"]).candidates[0] == "h100-80gb"
    assert match(None, TABLE, ["gold", "ib"]).candidates == ()
    assert match(None, TABLE, ["a100", "h100"]).candidates == ()


@pytest.mark.parametrize("gpu", [gpu for gpu in TABLE.values() if gpu.name != CPU], ids=lambda gpu: gpu.name)
def test_each_name_in_the_table_means_itself(gpu: Gpu) -> None:
    assert match(gpu.name, TABLE).gpu == gpu.name
    assert match(gpu.name.upper().replace("-", "_"), TABLE).gpu == gpu.name
    assert gpu.name in match(gpu.name.rsplit("-", 1)[0], TABLE, memory_gib=gpu.memory_gib).candidates
