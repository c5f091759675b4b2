"""Configuration from its sources: precedence, origins, and every error at once with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from fullft_cluster.config import Config
from fullft_cluster.config_load import read_config, read_config_text, resolve, to_yaml
from fullft_cluster.errors import UsageError


def job_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def test_precedence_and_origins(tmp_path: Path) -> None:
    profile = tmp_path / "lab.yaml"
    profile.write_text((Path(__file__).parents[2] / "configs/clusters/a100-80gb.yaml").read_text())
    with profile.open("a") as file:
        file.write("config:\n  slurm: {partition: gpu, account: profile, qos: profile}\n  train: {seed: 1}\n")
    path = job_file(
        tmp_path,
        f"model: 7b\ncluster: {profile}\nslurm:\n  account: yaml\n  qos: yaml\ntrain:\n  learning_rate: 1e-5\n",
    )
    found = resolve({"slurm.qos": "flag", "model": None}, ["slurm.qos=set", "train.seq_len=1024"], path)
    slurm, train = found.config.slurm, found.config.train
    assert (slurm.partition, slurm.account, slurm.qos) == ("gpu", "yaml", "flag")
    assert (train.seed, train.seq_len, train.learning_rate) == (1, 1024, 1e-5)
    origins = found.origins
    assert origins["slurm.qos"] == "flag"
    assert origins["train.seq_len"] == "--set"
    assert origins["slurm.account"] == f"{path}:4"
    assert origins["slurm.partition"].startswith("cluster ")
    assert "train.weight_decay" not in origins


def test_the_written_config_is_a_config_again(tmp_path: Path) -> None:
    found = resolve({"model": "7b", "train.learning_rate": 1e-05, "slurm.time": "01:00:00"}, [], None)
    text = to_yaml(found)
    path = job_file(tmp_path, text)
    assert read_config(path) == found.config
    assert 'time: "01:00:00"  # flag' in text
    assert "weight_decay: 0.01  # default" in text


def test_floats_are_floats_to_every_yaml_reader(tmp_path: Path) -> None:
    import yaml

    text = to_yaml(resolve({"train.learning_rate": 1e-05}, [], None))
    assert yaml.safe_load(text)["train"]["learning_rate"] == 1e-05


def test_every_error_at_once_with_its_place(tmp_path: Path) -> None:
    path = job_file(
        tmp_path,
        "modle: 7b\ntrain:\n  seq_len: long\n  per_device_train_batch_size: 4\nresources:\n  gpus: -2\n",
    )
    with pytest.raises(UsageError) as refused:
        resolve({"train.epochs": 0}, ["train.lr", "output.save_step=5"], path)
    text = str(refused.value)
    assert len(refused.value.problems) == 7
    for expected in (
        f"{path}:1: modle: unknown key. Did you mean 'model'?",
        f"{path}:3: train.seq_len",
        "resources.micro_batch_size",
        f"{path}:6: resources.gpus",
        "flag: train.epochs",
        "--set: 'train.lr' is not section.key=value",
        "--set: output.save_step: unknown key. Did you mean 'save_steps'?",
    ):
        assert expected in text


def test_a_section_where_a_value_belongs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train"):
        resolve({}, [], job_file(tmp_path, "train: 5\n"))
    with pytest.raises(UsageError):
        resolve({}, ["model.name=7b"], None)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml"):
        resolve({}, [], tmp_path / "absent.yaml")


def test_the_local_backend_has_its_own_cluster() -> None:
    assert resolve({"backend": "local"}, [], None).cluster.name == "local"
    assert resolve({}, [], None).cluster.name == "a100-80gb"
    assert resolve({}, [], None).config.backend is None


def test_defaults_are_those_of_the_struct() -> None:
    assert resolve({}, [], None).changed(cluster=None).config == Config()


def test_sources_go_through_config_yaml_and_back(tmp_path: Path) -> None:
    given = "[{path: a.jsonl, weight: 2}, {path: org/name, weight: 1e-5, subset: main, fields: {text: 'a: b #'}}]"
    found = resolve({}, [f"data.sources={given}"], None)
    assert [source.weight for source in found.config.data.sources] == [2, 1e-05]
    assert found.origins["data.sources"] == "--set"
    text = to_yaml(found)
    (tmp_path / "config.yaml").write_text(text)
    assert read_config(tmp_path / "config.yaml") == found.config
    assert read_config_text(text) == found.config
