"""Exports: the checkpoint's weights to the last bit, in little memory; what is wrong is said before it is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("deepspeed")
pytest.importorskip("torch")

import torch
import yaml
from written_checkpoint import commit, draw, make_run

from fullft_cluster.errors import RunFailedError, UsageError
from fullft_cluster.rundir import RunDir
from fullft_cluster.train import export_files
from fullft_cluster.train.consolidate import open_weights
from fullft_cluster.train.export import MARK, check_space, export_checkpoint
from fullft_cluster.train.export_form import Form

HEAD = "lm_head.weight"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run")


def exported(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for shard in directory.glob("*.safetensors"):
        found |= load_file(shard)
    return found


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("mapped_bytes", [1, 1 << 30])
def test_weights_are_read_as_deepspeed_reads_them(run: RunDir, stage: int, mapped_bytes: int) -> None:
    """Three ranks, sizes that do not divide: every element, whole and in part, is that of DeepSpeed's own script."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    path = commit(run, 5, draw(run), stage=stage)
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(path), tag=f"zero{stage}")
    ours = open_weights(path, mapped_bytes)
    assert list(ours.shapes) == list(theirs)
    for name, tensor in theirs.items():
        assert ours.tensor(name).equal(tensor), name
        size = tensor.numel()
        assert ours.part(name, size // 3, size - 1).equal(tensor.flatten()[size // 3 : size - 1]), name


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_shards_with_index_in_bf16(run: RunDir, tmp_path: Path, stage: int) -> None:
    """What FSDP writes too; the weights are those of training: the fp32 masters rounded to the nearest bf16."""
    weights = draw(run)
    path = commit(run, 5, weights, stage=stage)
    target = export_checkpoint(run, path, tmp_path / "out", Form(max_shard_bytes=100_000))
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list(target.glob("*.safetensors"))) > 2
    assert index["metadata"]["total_size"] == 2 * sum(weight.numel() for weight in weights.values())
    found = exported(target)
    assert found.keys() == weights.keys() == index["weight_map"].keys()
    assert all(found[name].equal(weight.bfloat16()) for name, weight in weights.items())
    config = json.loads((target / "config.json").read_text())
    assert (config["dtype"], config["use_cache"], config["vocab_size"]) == ("bfloat16", True, 2048)
    assert json.loads((target / MARK).read_text()) == {"run": "run", "step": 5, "dtype": "bfloat16"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run", "run-model"]


def test_tied_embeddings_are_written_once(tmp_path: Path) -> None:
    """FSDP's checkpoint has them under both names."""
    from transformers import AutoModelForCausalLM

    run = make_run(tmp_path / "run", precision="fp32", tie_word_embeddings=True)
    weights = draw(run)
    assert HEAD not in weights
    path = commit(run, 5, {**weights, HEAD: weights[export_files.EMBEDDINGS]}, stage=0)
    target = export_checkpoint(run, path, tmp_path / "out")
    assert exported(target).keys() == weights.keys()
    model, info = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.dtype == torch.float32


def test_generation_ends_at_the_end_of_a_turn(tmp_path: Path) -> None:
    """The weights are made so that the end of a turn, which is not EOS, is always the next token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    end_of_turn = 77
    run = make_run(tmp_path / "run", end_of_turn_id=end_of_turn)
    weights = draw(run)
    for name, weight in weights.items():
        if "o_proj" in name or "down_proj" in name or name == HEAD:
            weight.zero_()
        elif "norm" in name or name == export_files.EMBEDDINGS:
            weight.fill_(1.0)
    weights[HEAD][end_of_turn] = 1.0
    (tmp_path / "run-model" / "chat_template.jinja").write_text("{{ 'the tokenizer brings it' }}")
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}")
    config = yaml.safe_load(run.config.read_text())
    config["data"]["chat_template"] = str(tmp_path / "mine.jinja")
    run.config.write_text(yaml.safe_dump(config))
    # As older models have it: transformers refuses to write it again.
    (tmp_path / "run-model" / "generation_config.json").write_text('{"eos_token_id": 5, "temperature": 0.6}')
    target = export_checkpoint(run, commit(run, 5, weights), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.generation_config.eos_token_id == [2, end_of_turn, 5]
    assert (model.generation_config.bos_token_id, model.generation_config.pad_token_id) == (1, 3)
    out = model.generate(torch.tensor([[1, 9, 9]]), max_new_tokens=6, do_sample=False)
    assert out[0].tolist() == [1, 9, 9, end_of_turn]
    assert AutoTokenizer.from_pretrained(target).chat_template == "{{ messages[0].content }}"


def test_a_larger_vocabulary_is_in_the_config(run: RunDir, tmp_path: Path) -> None:
    weights = draw(run)
    for name in (export_files.EMBEDDINGS, HEAD):
        weights[name] = torch.cat([weights[name], torch.zeros(64, 36)])
    target = export_checkpoint(run, commit(run, 5, weights), tmp_path / "out")
    assert json.loads((target / "config.json").read_text())["vocab_size"] == 2112
    weights[HEAD] = weights[HEAD][:2048]
    with pytest.raises(RunFailedError, match=r"lm_head\.weight differ"):
        export_checkpoint(run, commit(run, 6, weights), tmp_path / "out")
    assert json.loads((target / MARK).read_text())["step"] == 5, "the older export stands"


def test_what_was_written_is_read_again(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that errs by one element in the last row of one tensor publishes nothing."""
    from safetensors import torch as safetensors

    def save_wrong(shard: dict[str, Any], *args: Any, **options: Any) -> None:
        shard["model.layers.1.mlp.up_proj.weight"][-1, -1] += 1
        save_file(shard, *args, **options)

    save_file = safetensors.save_file
    monkeypatch.setattr(safetensors, "save_file", save_wrong)
    with pytest.raises(RunFailedError, match=r"layers\.1\.mlp\.up_proj\.weight has other values in row 53"):
        export_checkpoint(run, commit(run, 5, draw(run)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_only_an_export_of_this_run_is_replaced(run: RunDir, tmp_path: Path) -> None:
    path = commit(run, 5, draw(run))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="is no export: it holds other files"):
        export_checkpoint(run, path, tmp_path / "mine")
    target = export_checkpoint(run, path, tmp_path / "out")
    (target / "stale").write_text("")
    export_checkpoint(run, path, target)
    assert not (target / "stale").exists()
    (target / MARK).write_text('{"run": "other"}')
    with pytest.raises(UsageError, match=r"is the export of another run \(other\)"):
        export_checkpoint(run, path, target)


def test_a_full_disk_is_known_before_anything_is_written(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=64_000_500)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check_space(tmp_path / "not" / "there", 400)
    with pytest.raises(RunFailedError, match=r"the export takes 0\.3 MB, and there are 64\.0 MB free"):
        export_checkpoint(run, commit(run, 5, draw(run)), tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_a_shard_of_some_rank_is_missing(run: RunDir) -> None:
    path = commit(run, 5, draw(run))
    next(path.glob("zero3/*rank_2_*optim*")).unlink()
    with pytest.raises(RunFailedError, match="was written by 3 processes, but has the shards of 2"):
        open_weights(path)


def test_the_command(run: RunDir) -> None:
    """From the shell, with a checkpoint that is damaged by a bit: named, and after it the good one is taken."""
    weights = draw(run)
    for step in (5, 6):
        commit(run, step, weights)
    damaged = next(run.checkpoints.glob("step-6/zero3/*rank_1_*optim*"))
    raw = bytearray(damaged.read_bytes())
    raw[len(raw) // 2] ^= 1
    damaged.write_bytes(raw)

    def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fullft_cluster", "export", str(run.path), "--json", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        )

    refused = shell()
    assert refused.returncode == 2
    (problem,) = json.loads(refused.stdout)["error"]["problems"]
    assert "does not have the digest" in problem["what"]
    assert problem["fix"] == "Good ones: step-5."
    done = shell("--checkpoint", "step-5", "--dtype", "fp32")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["step"], said["dtype"]) == (5, "float32")
    found = exported(Path(said["export"]))
    assert all(found[name].equal(weight) for name, weight in weights.items())


MEASURE = """
import sys
from pathlib import Path
from fullft_cluster.rundir import RunDir
from fullft_cluster.train.export import export_checkpoint
from fullft_cluster.train.export_form import Form

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

for path in sys.argv[1:]:  # the first one is small: it imports the libraries
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (man 5 proc)
    before = kilobytes("VmRSS")
    run = RunDir(Path(path))
    export_checkpoint(run, run.checkpoints / "step-5", run.path / "out", Form(max_shard_bytes=4_000_000))
print((kilobytes("VmHWM") - before) * 1024)
"""


def test_memory_is_a_shard_and_a_tensor_not_the_model(run: RunDir, tmp_path: Path) -> None:
    """The largest tensor takes 4 MB, a file of the export as much; the model 130 MB in the checkpoint."""
    commit(run, 5, draw(run))
    large = make_run(tmp_path / "large", hidden_size=512, intermediate_size=1024, num_hidden_layers=11,
                     num_attention_heads=8, num_key_value_heads=8)  # fmt: skip
    weights = draw(large)
    size = 4 * sum(weight.numel() for weight in weights.values())
    assert size > 120e6
    assert max(weight.nbytes for weight in weights.values()) < 4.2e6
    commit(large, 5, weights, ranks=2)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(run.path), str(large.path)], capture_output=True, text=True, check=False,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < size / 3, done.stdout
