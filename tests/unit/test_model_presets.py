"""The shipped models: their parameters are those that were published, and those that transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fullft_cluster.errors import UsageError
from fullft_cluster.model import load_model, presets
from fullft_cluster.yaml_struct import load_yaml

PUBLISHED = {
    # The totals that the hub shows of the safetensors files; of tied embeddings one copy.
    "7b": 6738415616, "13b": 13015864320, "30b": 32528943616, "65b": 65285660672,
    "llama-2-7b": 6738415616, "llama-2-13b": 13015864320, "llama-2-70b": 68976648192,
    "llama-3-8b": 8030261248, "llama-3-70b": 70553706496,
    "llama-3.1-8b": 8030261248, "llama-3.1-70b": 70553706496, "llama-3.1-405b": 405853388800,
    "llama-3.2-1b": 1235814400, "llama-3.2-3b": 3212749824,
    "mistral-7b-v0.1": 7241732096, "mistral-7b-v0.3": 7248023552,
    "mistral-nemo-12b": 12247782400, "mistral-small-24b": 23572403200,
    "qwen2.5-0.5b": 494032768, "qwen2.5-1.5b": 1543714304, "qwen2.5-3b": 3085938688, "qwen2.5-7b": 7615616512,
    "qwen2.5-14b": 14770033664, "qwen2.5-32b": 32763876352, "qwen2.5-72b": 72706203648,
    "qwen3-0.6b": 596049920, "qwen3-4b": 4022468096, "qwen3-8b": 8190735360,
    "qwen3-14b": 14768307200, "qwen3-32b": 32762123264,
    "tinyllama-1.1b": 1100048384,
    "smollm2-135m": 134515008, "smollm2-360m": 361821120, "smollm2-1.7b": 1711376384,
    "yi-1.5-6b": 6061035520, "yi-1.5-9b": 8829407232, "yi-1.5-34b": 34388917248,
    "deepseek-llm-7b": 6910365696,
    "phi-3-mini": 3821079552, "phi-4-14b": 14659507200,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_parameters(name: str):
    assert load_model(name).parameters == PUBLISHED[name]


@pytest.fixture(scope="module")
def made() -> Any:
    """What transformers makes of a config of two layers, without memory: the parameters by name."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")

    def parameters(config: dict[str, Any]) -> dict[str, int]:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
        return {name: tensor.numel() for name, tensor in model.named_parameters()}

    return parameters


@pytest.mark.parametrize("name", presets())
def test_transformers_makes_the_same_tensors(name: str, made: Any):
    spec = load_model(name)
    tensors = made({**spec.hf_config, "num_hidden_layers": 2})
    ours = {tensor.name: tensor.elements for tensor in spec.outer_tensors()}
    ours |= {f"model.layers.{i}.{tensor.name}": tensor.elements for i in (0, 1) for tensor in spec.layer_tensors()}
    assert tensors == ours
    of_a_layer = sum(size for name, size in tensors.items() if name.startswith("model.layers.1."))
    assert spec.parameters == sum(tensors.values()) + (spec.num_hidden_layers - 2) * of_a_layer
    assert spec.largest_tensor == max(tensors.values())


def test_each_preset_names_its_weights_and_where_its_sizes_are_from():
    for name in presets():
        spec = load_model(name)
        if spec.weights == "random":
            continue
        text = (Path(__file__).resolve().parents[2] / "configs" / "models" / f"{name}.yaml").read_text()
        assert "https://huggingface.co/" in text.partition("description:")[0]
        assert str(spec.weights).count("/") == 1


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("LLAMA-2-70B", "llama-2-70b"),
        ("llama2-70b", "llama-2-70b"),
        ("Llama_3.1_8B", "llama-3.1-8b"),
        ("Qwen2.5-7B", "qwen2.5-7b"),
        ("mistral-7b", "mistral-7b-v0.3"),
        ("Mistral-Nemo", "mistral-nemo-12b"),
        ("llama-7b", "7b"),
        ("llama-1-65b", "65b"),
        ("llama-3.3-70b", "llama-3.1-70b"),
        ("phi-4", "phi-4-14b"),
    ],
)
def test_other_names(ref: str, name: str):
    assert load_model(ref) == load_model(name)


def test_no_name_leads_to_two_presets():
    seen: dict[str, str] = {}
    for name in presets():
        for other in {name, name.replace("-", "").replace("_", "")}:
            assert seen.setdefault(other, name) == name


def test_each_variant_is_found_by_its_hub_id_and_of_the_same_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    found: dict[str, str] = {}
    for path in (Path(__file__).resolve().parents[2] / "configs" / "models").glob("*.yaml"):
        data = load_yaml(path).data
        for hub_id in {data["weights"], *data.get("variants", {})} - {"random"}:
            spec = load_model(hub_id, nobody)
            assert (spec.weights, spec.parameters) == (hub_id, load_model(path.stem).parameters)
            assert found.setdefault(hub_id.lower(), path.stem) == path.stem
        for alias in data.get("aliases", ()):
            assert load_model(alias, nobody).name == path.stem
            assert found.setdefault(alias, path.stem) == path.stem


def nobody(ref: str, environ: object) -> dict[str, Any]:
    raise AssertionError(f"the hub was asked for {ref}")


def test_hub_ids_of_presets_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    spec = load_model("meta-llama/Llama-3.1-8B", nobody)
    assert (spec.name, spec.weights) == ("Llama-3.1-8B", "meta-llama/Llama-3.1-8B")
    assert spec.hf_config == load_model("llama-3.1-8b").hf_config
    lower = load_model("qwen/qwen2.5-7b-instruct", nobody)
    assert (lower.weights, lower.parameters) == ("Qwen/Qwen2.5-7B-Instruct", PUBLISHED["qwen2.5-7b"])
    assert (lower.max_position_embeddings, load_model("qwen2.5-7b").max_position_embeddings) == (32768, 131072)


def test_the_cache_is_nearer_than_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = {**load_model("llama-3.1-8b").hf_config, "num_hidden_layers": 3}
    snapshot = tmp_path / "models--meta-llama--Llama-3.1-8B" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert load_model("meta-llama/Llama-3.1-8B").num_hidden_layers == 3


def test_a_directory_with_a_presets_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Which of the two is meant is not guessed; a name that is a preset's only loosely is the directory's."""
    monkeypatch.chdir(tmp_path)
    for name in ("Qwen2.5-7B", "qwen_2.5_7b"):
        (tmp_path / name).mkdir()
        assert load_model(name) == load_model("qwen2.5-7b") if name == "Qwen2.5-7B" else True
        (tmp_path / name / "config.json").write_text(json.dumps(load_model("tiny").hf_config))
    with pytest.raises(UsageError, match=r"is a preset, and a directory.*\./Qwen2.5-7B .*Qwen/Qwen2.5-7B for the pres"):
        load_model("Qwen2.5-7B")
    assert load_model("./Qwen2.5-7B").hidden_size == 128
    assert load_model("qwen_2.5_7b").hidden_size == 128
