"""Cluster profiles: the shipped ones hold, and a wrong one is told all of its errors at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from fullft_cluster.errors import UsageError
from fullft_cluster.hardware import clusters, gpus, load_cluster, load_gpu


def test_shipped_profiles():
    assert {"a100-80gb", "a100-40gb", "local"} <= set(clusters())
    for name in clusters():
        cluster = load_cluster(name)
        assert cluster.name == name
        assert cluster.gpu in gpus()
    a100 = load_cluster("a100-80gb")
    assert (a100.gpus_per_node, a100.slurm_gpu_type, a100.gpu) == (8, "a100", "a100-80gb")
    local = load_cluster("local")
    assert (local.gpu, local.gpus_per_node, local.max_nodes) == ("cpu", 2, 1)


def test_a_gpu_has_less_memory_than_its_name_says():
    assert load_gpu("a100-80gb").memory_gib == pytest.approx(79.2, abs=0.2)
    assert 38 < (load_gpu("a100-40gb").memory_gib or 0) < 40
    for gpu in gpus().values():
        assert gpu.memory_source and gpu.peak_source and gpu.utilisation_source


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
        ":2: gpus_per_node: 0 is not a whole number, 1 to 1000000. Write a whole number, 1 to 1000000.",
        ":3: max_nodez: unknown key. Did you mean 'max_nodes'?",
        ":5: host_memory_gib: nan is not a number to compute with. Write a number, above 0, 10000000 or less.",
        ":9: env: {'A': 1} is not a mapping, each value text. Write a mapping, each value text.",
        ": max_nodes: is missing. Write a whole number, 1 to 1000000.",
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
""")
    cluster = load_cluster(str(path))
    assert (cluster.name, cluster.setup, cluster.env) == ("mine", ("module load cuda",), {})
    assert cluster.config == {"slurm": {"partition": "gpu"}}
