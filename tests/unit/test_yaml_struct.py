"""Every problem of a YAML at once, with its line; never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullft_cluster.config import Config
from fullft_cluster.errors import UsageError
from fullft_cluster.foreign_names import FOREIGN_NAMES
from fullft_cluster.struct_check import check, convert, is_struct
from fullft_cluster.type_words import describe
from fullft_cluster.yaml_struct import load_yaml, loads_yaml, parse_value


class Inner(msgspec.Struct):
    size: Annotated[int, msgspec.Meta(ge=1)]


class Outer(msgspec.Struct):
    kind: Literal["a", "b"]
    inner: Inner


def problems(text: str, struct: type[msgspec.Struct] = Config) -> list[str]:
    located = loads_yaml(text, "job.yaml")
    return [str(p) for p in [*located.problems, *check(struct, located.data, located.where, FOREIGN_NAMES)]]


def test_every_problem_at_once_with_its_line():
    text = """\
modl: 7b
train:
  seq_len: abc
  epochs: 0
  precision: bf17
  seq_len: 2
data: 3
seq_len: 3
resources:
slurm: {exclusive: no, gpus_per_node: 8}
per_device_train_batch_size: 3
output:
  save_steps: 1.5
  max_grad_norm: .inf
train: {weight_decay: .nan}
"""
    assert problems(text) == [
        "job.yaml:6: train.seq_len: is already given on line 3. Keep one of them.",
        "job.yaml:15: train: is already given on line 2. Keep one of them.",
        "job.yaml:1: modl: unknown key. Did you mean 'model'?",
        "job.yaml:15: train.weight_decay: nan is not a number to compute with. Write a number, 0 or more.",
        "job.yaml:7: data: 3 is not a section. Write its keys below it, indented: train, sources, validation,"
        " validation_fraction, format, fields, chat_template, train_on_inputs, packing, long_rows, on_bad_row,"
        " streaming, cache_dir.",
        "job.yaml:8: seq_len: unknown key. Write it as train.seq_len.",
        "job.yaml:10: slurm.exclusive: 'no' is not true or false. Write true or false.",
        "job.yaml:10: slurm.gpus_per_node: 8 is not text. Quote it: '8'.",
        "job.yaml:11: per_device_train_batch_size: unknown key."
        " Write resources.micro_batch_size (sequences a GPU computes at once).",
        "job.yaml:13: output.save_steps: 1.5 is not a whole number, 1 to 2147483647."
        " Write a whole number, 1 to 2147483647.",
        "job.yaml:14: output.max_grad_norm: unknown key. Write it as train.max_grad_norm.",
    ]


def test_leaf_errors_in_words():
    assert problems("train: {epochs: 0, precision: bf17, seed: 2147483648, warmup_ratio: 2, learning_rate: 0}") == [
        "job.yaml:1: train.epochs: 0 is not a whole number, 1 to 2147483647. Write a whole number, 1 to 2147483647.",
        "job.yaml:1: train.precision: 'bf17' is not one of bf16, fp32. Did you mean 'bf16'?",
        "job.yaml:1: train.seed: 2147483648 is not a whole number, 0 or more, below 2147483648."
        " Write a whole number, 0 or more, below 2147483648.",
        "job.yaml:1: train.warmup_ratio: 2 is not a number, 0 to 1. Write a number, 0 to 1.",
        "job.yaml:1: train.learning_rate: 0 is not a number, above 0. Write a number, above 0.",
    ]


def test_a_missing_required_key():
    assert problems("inner: {}", Outer) == [
        "job.yaml:1: inner.size: is missing. Write a whole number, 1 or more.",
        "job.yaml: kind: is missing. Write one of a, b.",
    ]


def test_a_list_of_mappings_is_checked_key_by_key():
    text = """\
data:
  sources:
    - path: a.jsonl
      wieght: 2
    - {weight: 0, format: alpca}
    - a.jsonl
    - path: b.jsonl
      path: c.jsonl
      fields: [text]
"""
    assert problems(text) == [
        "job.yaml:8: data.sources[3].path: is already given on line 7. Keep one of them.",
        "job.yaml:4: data.sources[0].wieght: unknown key. Did you mean 'weight'?",
        "job.yaml:5: data.sources[1].weight: 0 is not a number, above 0, 1000 or less."
        " Write a number, above 0, 1000 or less.",
        "job.yaml:5: data.sources[1].format: 'alpca' is not one of alpaca, auto, messages, prompt_completion,"
        " question_answer, sharegpt, text. Did you mean 'alpaca'?",
        "job.yaml:5: data.sources[1].path: is missing. Write text.",
        "job.yaml:6: data.sources[2]: 'a.jsonl' is not a mapping. Write its keys as a mapping:"
        " path, weight, split, subset, format, fields.",
        "job.yaml:9: data.sources[3].fields: ['text'] is not a mapping, each value text."
        " Write a mapping, each value text.",
    ]
    assert problems("data: {sources: a.jsonl}") == [
        "job.yaml:1: data.sources: 'a.jsonl' is not a list. Write a list; each item has some of these keys:"
        " path, weight, split, subset, format, fields."
    ]
    assert problems("data: {sources: [{path: a, weight: 2}, {path: o/n, subset: main}]}") == []


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("dataset: x", "Write data.train: a file"),
        ("datasets: [x]", "several: data.sources"),
        ("packing: true", "Write it as data.packing"),
        ("train: {sample_packing: true}", "Write data.packing"),
        ("data: {tokenizer: x}", "Write tokenizer at the top level"),
        ("tokenizer_name_or_path: x", "Write tokenizer (a directory"),
        ("train_on_inputs: true", "Write it as data.train_on_inputs"),
        ("val_set_size: 0.1", "Write data.validation_fraction"),
        ("chat_template: x", "Write it as data.chat_template"),
        ("data: {template: chatml}", "Write data.chat_template"),
        ("data: {dataset_text_field: body}", "Write data.fields: {text: KEY}"),
    ],
)
def test_data_keys_of_other_trainers_are_told_to_be_ours(text: str, fix: str):
    (problem,) = problems(text)
    assert fix in problem


def test_scalars_are_those_of_yaml_1_2():
    data = loads_yaml("a: 1e-5\nb: 24:00:00\nc: no\nd: 010\ne: 2024-01-01\nf: 0x10\ng: ~\nh: .5\ni: true", "f").data
    assert list(data.values()) == [1e-5, "24:00:00", "no", 10, "2024-01-01", 16, None, 0.5, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x", "f:1: anchors and aliases are not read"),
        ("a:\n\t- b", "f:2: a tab stands where YAML wants spaces"),
        ("- 1", "f:1: is not a mapping"),
        ("3", "f:1: is not a mapping"),
        ("a: [", "is not YAML"),
        ("a: \x00", "is not YAML"),
        ("a: b: c", "f:1: is not YAML"),
        ("? [a]\n: 3", "is not YAML"),
        ("a: !!python/object:os.system x", "f:1: is not YAML"),
        ("a: 1\n---\nb: 2", "is not YAML"),
        ("a: " + "[" * 100_000, "f:1: is nested too deeply"),
        ("a: " + "9" * 5000, "cannot be read"),
    ],
)
def test_what_is_no_config_is_an_error_with_its_place(text: str, message: str):
    with pytest.raises(UsageError) as error:
        loads_yaml(text, "f")
    assert message in str(error.value)


def test_keys_that_are_no_names():
    located = loads_yaml("1: 2\nnull: 3\nok: 4", "f")
    assert located.data == {"ok": 4}
    assert [p.where for p in located.problems] == ["f:1", "f:2"]


def test_files_that_cannot_be_read(tmp_path: Path):
    binary, long = tmp_path / "binary", tmp_path / "long"
    binary.write_bytes(b"\xff\xfe\x00")
    long.write_bytes(b"#" * (2 << 20))
    for path, message in (
        (tmp_path / "none.yaml", "No such file"),
        (tmp_path, "is a directory"),
        (binary, "UTF-8"),
        (long, "larger than 1 MiB"),
        (Path("a\0b"), "not a path"),
    ):
        with pytest.raises(UsageError, match=message):
            load_yaml(path)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_never_ends_is_not_read(tmp_path: Path, kind: str):
    path = Path("/dev/zero")
    if kind == "pipe":
        path = tmp_path / "pipe"
        os.mkfifo(path)
    # In a process of its own, so that a read that hangs is a failure and not the end of the tests.
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from pathlib import Path; from fullft_cluster.yaml_struct import load_yaml\n"
        f"load_yaml(Path({str(path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "is not a regular file" in done.stderr


def test_no_integer_is_unbounded():
    def integers(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
        for field in msgspec.structs.fields(struct):
            if is_struct(field.type):
                yield from integers(field.type, f"{prefix}{field.name}.")
            elif "whole number" in describe(field.type):
                yield f"{prefix}{field.name}"

    names = list(integers(Config))
    assert len(names) > 10
    for name in names:
        section, _, key = name.rpartition(".")
        data = {section: {key: 2**31}} if section else {key: 2**31}
        assert check(Config, data, lambda _: "f"), name


def test_sections_keep_their_lines():
    located = loads_yaml("name: x\nconfig:\n  train:\n    seq_len: 0\n", "c.yaml")
    overlay = located.section("config")
    assert [str(p) for p in check(Config, overlay.data, overlay.where)] == [
        "c.yaml:4: train.seq_len: 0 is not a whole number, 1 to 10000000. Write a whole number, 1 to 10000000."
    ]
    assert overlay.where("train.nothing") == "c.yaml:3"


def test_values_of_the_command_line():
    assert [parse_value(t) for t in ("1e-5", "true", "", "a b", "24:00:00", "null", "[1, 2]")] == [
        1e-5, True, "", "a b", "24:00:00", None, [1, 2],
    ]  # fmt: skip
    with pytest.raises(UsageError):
        parse_value("3\nb: 3")


def test_an_empty_section_is_its_defaults():
    assert convert(Config, {"model": "7b", "train": None}) == Config(model="7b")


@given(st.text())
def test_any_text_is_a_mapping_or_a_usage_error(text: str):
    try:
        located = loads_yaml(text, "f")
    except UsageError:
        return
    check(Config, located.data, located.where, FOREIGN_NAMES)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.sampled_from(["train", "seq_len", "model", "data", "sources", "path", "weight", "x"]), c)))  # fmt: skip # noqa: E501
def test_what_check_lets_pass_converts(value: object):
    data = value if isinstance(value, dict) else {"train": value}
    if not check(Config, data, lambda _: "f"):
        convert(Config, data)
