"""The road to a job: what a dry run does not do, what stops it early, and which weights belong to which model."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from fullft_cluster.config_load import resolve
from fullft_cluster.errors import UsageError
from fullft_cluster.model import load_model
from fullft_cluster.road import Ready, to_job, to_plan
from fullft_cluster.rundir import RunDir
from fullft_cluster.runtime.pod import make


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "Two nodes are better than one."}\n')
    return path


def job(data: Path, *, real: bool = False, environ: dict[str, str] | None = None, **flags: Any) -> Ready:
    given = {key.replace("__", "."): value for key, value in flags.items()}
    given = {"data.train": str(data), "output.runs_dir": str(data.parent / "runs"), "backend": "slurm"} | given
    return to_job(resolve(given, [], None), environ or {"HF_HOME": str(data.parent)}, weights_must_exist=real)


def test_only_a_submit_asks_the_network(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a dry run asks the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    ready = job(data, model="7b")
    assert any("not in the cache" in note and "a submit asks the hub" in note for note in ready.notes)
    with pytest.raises(AssertionError, match="asks the network"):
        job(data, model="7b", real=True)


@pytest.mark.parametrize("real", [True, False])
def test_weights_of_another_model_are_refused(data: Path, real: bool) -> None:
    weights = data.parent / "weights"
    weights.mkdir()
    config = load_model("7b").hf_config
    for name, text in (("model.safetensors", "x"), ("tokenizer.json", "{}"), ("config.json", json.dumps(config))):
        (weights / name).write_text(text)
    assert job(data, model="7b", weights=str(weights), real=real).job.name
    (weights / "config.json").write_text(json.dumps({**config, "hidden_size": 64, "num_attention_heads": 4}))
    with pytest.raises(UsageError) as refused:
        job(data, model="7b", weights=str(weights), real=real)
    assert "hidden_size is 64, but 7b has 4096" in str(refused.value)
    assert "num_attention_heads is 4, but 7b has 32" in str(refused.value)


@pytest.mark.parametrize(
    "key", ["data.train", "data.cache_dir", "model", "weights", "output.runs_dir", "cluster", "slurm.account"]
)
@pytest.mark.parametrize("bad", [os.fsdecode(b"caf\xe9"), "a\nb"])
def test_text_that_no_file_can_hold_is_refused_at_once(data: Path, key: str, bad: str) -> None:
    resolved = resolve({"model": "tiny", "data.train": str(data), "backend": "slurm"}, [], None)
    resolved = resolved.changed(**{key.replace(".", "__"): f"/{bad}"})
    with pytest.raises(UsageError) as refused:
        to_job(resolved, {}, weights_must_exist=False)
    assert [problem.where for problem in refused.value.problems] == [key]
    str(refused.value).encode()
    with pytest.raises(UsageError):
        to_plan(resolved)


def test_a_current_directory_that_is_gone(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = data.parent / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match=r"output\.runs_dir: 'runs' is relative to the current directory, which no"):
        job(data, model="tiny", output__runs_dir="runs")
    assert job(data, model="tiny").job.name == "tiny-train", "absolute paths need none"


def test_an_unknown_home(data: Path) -> None:
    with pytest.raises(UsageError, match=r"output\.runs_dir"):
        job(data, model="tiny", output__runs_dir="~no-such-user-here/runs")


def on_kubernetes(data: Path, **flags: Any) -> Ready:
    image = "registry.example.org/fullft-cluster:0.1.0"
    return job(data, model="tiny", cluster="local", backend="kubernetes", kubernetes__image=image, **flags)


def submitted(data: Path, **flags: Any) -> RunDir:
    """The run directory as the pods make it, on a volume that is mounted here."""
    ready, files = on_kubernetes(data, **flags), data.parent / "mounted"
    files.mkdir(exist_ok=True)
    for name, text in ready.rendered.files.items():
        (files / name).write_text(text)
    ready.run_dir.parent.mkdir(exist_ok=True)
    make(RunDir(ready.run_dir), files)
    return RunDir(ready.run_dir)


@pytest.mark.parametrize("first", [{"name": "tiny-train"}, {}])
def test_the_same_run_submitted_again_goes_on_in_its_directory(data: Path, first: dict[str, str]) -> None:
    """After `delete`; its name was given or made the first time, which the comments of config.yaml tell apart."""
    run = submitted(data, **first)
    run.update_run(state="cancelled")
    ready = on_kubernetes(data, name="tiny-train")
    assert ready.run_dir == run.path
    assert f"the run directory {run.path} is this very run's: it goes on from its newest checkpoint" in ready.notes
    assert submitted(data, name="tiny-train").read_run()["state"] != "completed"  # the pods do not refuse it
    assert on_kubernetes(data).job.name == "tiny-train-2", "without a name it is a new run"


def test_the_directory_of_another_run_is_refused_with_a_way_out(data: Path) -> None:
    run = submitted(data, name="b1")
    with pytest.raises(UsageError) as refused:
        on_kubernetes(data, name="b1", train__max_steps=7)
    (problem,) = refused.value.problems
    assert f"the run directory {run.path} exists, and is not this run's: config.yaml" in problem.what
    assert problem.fix == "Choose another --name, or delete that directory, with its checkpoints."
    run.update_run(state="completed")
    with pytest.raises(UsageError, match="its run is completed"):
        on_kubernetes(data, name="b1")


@pytest.mark.parametrize(
    ("backend", "way"), [("local", "or go on with it: `fullft-cluster resume b1`"), ("kubernetes", "or delete")]
)
def test_only_a_run_that_resume_finds_is_to_be_resumed(data: Path, backend: str, way: str) -> None:
    there = data.parent / "runs" / "b1"
    there.mkdir(parents=True)
    (there / "run.json").write_text(json.dumps({"backend": backend}))
    with pytest.raises(UsageError, match=f"the run directory {there} exists. Choose another name, {way}"):
        job(data, model="tiny", name="b1")


@pytest.mark.parametrize("backend", ["kubernetes", "slurm"])
def test_a_job_without_data_is_told_so_with_all_else(data: Path, backend: str) -> None:
    flags: dict[str, Any] = {"data.train": None, "backend": backend, "weights": "random", "model": "65b"}
    with pytest.raises(UsageError) as refused:
        job(data, real=True, **flags)
    told = {problem.where for problem in refused.value.problems}
    assert told == {"data.train", "weights"} | ({"kubernetes.image"} if backend == "kubernetes" else set())


ODD = {"name": "a b", "weights": "random"}
"""A name that is none, and weights that 65b cannot have: it has no tokenizer of its own."""


@pytest.mark.parametrize(
    ("model", "wrong"),
    [("65b", {"--name", "weights", "kubernetes.image"}), ("nope", {"--name", "model", "kubernetes.image"})],
)
def test_everything_wrong_with_a_job_for_kubernetes_is_told_at_once(data: Path, model: str, wrong: set[str]) -> None:
    with pytest.raises(UsageError) as refused:
        job(data, real=True, backend="kubernetes", model=model, kubernetes__gang="volcano", **ODD)
    told = [problem.where for problem in refused.value.problems]
    assert wrong == set(told) and len(told) == len(wrong)


def test_everything_wrong_with_a_job_for_slurm_is_told_at_once(data: Path) -> None:
    with pytest.raises(UsageError) as refused:
        job(data, real=True, model="65b", slurm__mem="much", **ODD)
    assert {"--name", "weights", "slurm.mem"} == {problem.where for problem in refused.value.problems}


def test_the_configuration_tells_what_the_plan_chose_for_what_is_open(data: Path) -> None:
    found = job(data, model="tiny", train__max_steps=5, data__validation_fraction=0.1)
    lines = [" ".join(line.split()) for line in found.job.config_yaml.splitlines()]
    rate = found.job.plan.learning_rate
    assert any(line.startswith("learning_rate: null # default: planned ") for line in lines)
    assert f"{rate}" in next(line for line in lines if line.startswith("learning_rate"))
    assert f"micro_batch_size: null # default: planned {found.job.plan.micro_batch_size}" in lines
    assert "eval_steps: null # default: planned 100" in lines
    assert "warmup_ratio: 0.03 # default" in lines and "max_steps: 5 # flag" in lines


def test_what_data_cannot_do_together_is_refused(data: Path) -> None:
    """Before anything is queued: a stream has no end that the schedule could know, and one set is evaluated on."""
    with pytest.raises(UsageError) as error:
        job(data, model="tiny", data__streaming=True, data__validation=str(data), data__validation_fraction=0.1)
    wrong = {problem.where for problem in error.value.problems}
    assert wrong == {"train.max_steps", "data.validation_fraction"}
    job(data, model="tiny", data__streaming=True, train__max_steps=5)


def test_evaluating_on_nothing_is_refused(data: Path) -> None:
    flags = {"train.eval_steps": 10, "train.early_stopping_patience": 2, "model": "tiny"}
    with pytest.raises(UsageError) as refused:
        job(data, **flags)
    assert {problem.where for problem in refused.value.problems} == {
        "train.eval_steps",
        "train.early_stopping_patience",
    }
    assert "needs a validation set" in str(refused.value)
    job(data, **flags, **{"data.validation_fraction": 0.1})


def test_a_tokenizer_is_found_from_every_node(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data.parent / "words").mkdir()
    (data.parent / "words" / "tokenizer.json").write_text("{}")
    monkeypatch.chdir(data.parent)
    ready = job(data, model="tiny", tokenizer="words")
    assert yaml.safe_load(ready.job.config_yaml)["tokenizer"] == f"{data.parent}/words"
    with pytest.raises(UsageError, match="tokenizer: 'wrds': no such directory"):
        job(data, model="tiny", tokenizer="wrds", real=True)


def test_a_chat_template_that_is_not_there_is_told_before_anything_is_queued(data: Path) -> None:
    template = data.parent / "chat.jinja"
    wrong = rf"{template}: the chat template cannot be read \(No such file or directory\)"
    with pytest.raises(UsageError, match=wrong):
        job(data, model="tiny", data__chat_template=str(template), real=True)
    ready = job(data, model="tiny", data__chat_template=str(template))
    assert any("a submit from here would be refused" in note and "chat template" in note for note in ready.notes)
    template.write_text("{{ messages }}")
    assert job(data, model="tiny", data__chat_template=str(template), real=True).job.name


def test_a_tokenizer_and_a_template_on_a_volume_that_is_not_mounted_here(data: Path) -> None:
    """The pods find them; of what lies elsewhere it is said that the pods do not."""
    paths = {"data.train": "/not-mounted/train.jsonl", "output.runs_dir": "/not-mounted"}
    flags = {**paths, "tokenizer": "/not-mounted/words", "data.chat_template": "/not-mounted/chat.jinja"}
    told = "\n".join(on_kubernetes(data, real=True, kubernetes__claim="runs", **flags).notes)
    assert "not seen from here, so the pods have to: tokenizer: '/not-mounted/words'" in told
    assert "not seen from here, so the pods have to: /not-mounted/chat.jinja" in told
    assert "not below" not in told
    words = data.parent / "words"
    words.mkdir()
    (words / "tokenizer.json").write_text("{}")
    notes = on_kubernetes(data, kubernetes__claim="runs", **paths, tokenizer=str(words)).notes
    assert any(note.startswith(f"tokenizer {words} is not below /not-mounted") for note in notes)
