"""Cluster profiles: the shipped ones hold, and a wrong one is told all of its errors at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fullft_cluster.errors import UsageError
from fullft_cluster.hardware import clusters, gpus, load_cluster, load_gpu
from fullft_cluster.inventory.gpu_names import match


def test_shipped_profiles():
    shipped = {"a100-80gb", "a100-40gb", "a800-80gb", "h100-80gb", "h200-141gb", "gh200-96gb", "l40s-48gb", "a10g-24gb"}
    assert shipped | {"local"} <= set(clusters())
    for name in shipped:
        cluster = load_cluster(name)
        assert (cluster.name, cluster.gpu) == (name, name)
        assert match(cluster.slurm_gpu_type, gpus(), memory_gib=load_gpu(name).memory_gib).gpu == name
        assert cluster.intra_node_gb_per_second * cluster.gpus_per_node >= cluster.inter_node_gb_per_second
        # No price is right for long, and no file system is everybody's.
        assert (cluster.price_per_gpu_hour, cluster.filesystem_free_gb) == (None, None)
    a100 = load_cluster("a100-80gb")
    assert (a100.gpus_per_node, a100.slurm_gpu_type, a100.gpu) == (8, "a100", "a100-80gb")
    local = load_cluster("local")
    assert (local.gpu, local.gpus_per_node, local.max_nodes) == ("cpu", 2, 1)


def test_a_gpu_has_less_memory_than_its_name_says():
    assert load_gpu("a100-80gb").memory_gib == pytest.approx(79.2, abs=0.2)
    assert 38 < (load_gpu("a100-40gb").memory_gib or 0) < 40
    for name, gpu in gpus().items():
        promised = re.search(r"(\d+)gb", name)
        if promised:
            assert 0.85 * int(promised[1]) < (gpu.memory_gib or 0) < int(promised[1])
        else:
            assert name == "cpu"


def test_each_figure_has_its_source():
    for gpu in gpus().values():
        for source in (gpu.memory_source, gpu.peak_source, gpu.memory_bandwidth_source, gpu.host_source):
            assert len(source) > 10
    published = {
        "a100-80gb": (312, 2039),
        "h100-80gb": (989, 3350),
        "h200-141gb": (989, 4800),
        "l40s-48gb": (362, 864),
        "a6000-48gb": (154.8, 768),
        "a10g-24gb": (70, 600),
        "rtx-4090-24gb": (165.2, 1008),
    }
    for name, figures in published.items():
        assert (load_gpu(name).peak_tflops, load_gpu(name).memory_gb_per_second) == figures
    assert [gpu.name for gpu in gpus().values() if not gpu.bf16] == ["v100-32gb"]


def test_every_error_of_a_profile_at_once(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("""\
gpu: a100-80
gpus_per_node: 0
max_nodez: 3
cpus_per_node: 8
host_memory_gib: .nan
intra_node_gb_per_second: 1
inter_node_gb_per_second: 1
filesystem_write_gb_per_second: 1
env: {A: 1}
config:
  train: {seq_len: 0, lr: 3}
""")
    with pytest.raises(UsageError) as error:
        load_cluster(str(path))
    assert sorted(str(p).removeprefix(str(path)) for p in error.value.problems) == sorted([
        ":2: gpus_per_node: 0 is not a whole number, 1 to 1024. Write a whole number, 1 to 1024.",
        ":3: max_nodez: unknown key. Did you mean 'max_nodes'?",
        ":5: host_memory_gib: nan is not a number to compute with. Write a number, above 0, 10000000 or less.",
        ":9: env: {'A': 1} is not a mapping, each value text. Write a mapping, each value text.",
        ": max_nodes: is missing. Write a whole number, 1 to 100000.",
        ":11: train.seq_len: 0 is not a whole number, 1 to 10000000. Write a whole number, 1 to 10000000.",
        ":11: train.lr: unknown key. Write train.learning_rate.",
        ":1: gpu: unknown GPU 'a100-80'. Did you mean 'a100-80gb'?",
    ])  # fmt: skip


def test_names_that_are_none(tmp_path: Path):
    with pytest.raises(UsageError, match=r"cluster: unknown cluster 'a100-80'\. Did you mean 'a100-80gb'"):
        load_cluster("a100-80")
    with pytest.raises(UsageError, match="No such file"):
        load_cluster(str(tmp_path / "x.yaml"))
    with pytest.raises(UsageError, match="gpu: unknown GPU"):
        load_gpu("v100")


def test_a_copy_of_a_profile_takes_its_files_name(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("""\
gpu: cpu
gpus_per_node: 2
max_nodes: 4
cpus_per_node: 8
host_memory_gib: 16
intra_node_gb_per_second: 1
inter_node_gb_per_second: 1
filesystem_write_gb_per_second: 1
slurm_gpu_type:
env:
setup: [module load cuda]
config: {slurm: {partition: gpu}}
filesystem_free_gb: 500
price_per_gpu_hour: 1.5
""")
    cluster = load_cluster(str(path))
    assert (cluster.name, cluster.setup, cluster.env) == ("mine", ("module load cuda",), {})
    assert cluster.config == {"slurm": {"partition": "gpu"}}
    assert (cluster.filesystem_free_gb, cluster.price_per_gpu_hour) == (500, 1.5)


def test_a_wrong_table_of_gpus_is_told_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "gpus.yaml").write_text("mine:\n  memory_gib: .nan\n  peak: 3\nother: 4\n")
    monkeypatch.setattr("fullft_cluster.hardware.share", lambda _: tmp_path)
    gpus.cache_clear()
    try:
        with pytest.raises(UsageError) as error:
            gpus()
    finally:
        gpus.cache_clear()
    text = str(error.value)
    assert "gpus.yaml:2: memory_gib: nan is not a number" in text
    assert "gpus.yaml:3: peak: unknown key" in text
    assert "peak_tflops: is missing" in text
