"""Hostile values in manifests: refused, or quoted so that they change nothing but themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes_scenarios import IMAGE, KINDS, SCENARIOS, job_of, rendered
from manifest_schemas import check, documents
from msgspec.structs import replace

from fullft_cluster.errors import UsageError
from fullft_cluster.kubernetes_job import KubernetesJob
from fullft_cluster.kubernetes_names import check_object_name
from fullft_cluster.kubernetes_pod import literal
from fullft_cluster.quoting import yaml_value
from fullft_cluster.render import render

VALUES = 10_000
"""Hostile values that the manifests are rendered with."""


def expand(text: str, env: dict[str, str]) -> str:
    """As the kubelet does (third_party/forked/golang/expansion/expand.go)."""
    out, index = [], 0
    while index < len(text):
        rest = text[index:]
        if rest.startswith("$$"):
            out.append("$")
            index += 2
        elif (match := re.match(r"\$\(([^)]*)\)", rest)) is not None:
            out.append(env.get(match[1], match[0]))
            index += len(match[0])
        else:
            out.append(rest[0])
            index += 1
    return "".join(out)


NASTY = ["{{", "}}", "{%", "{#", "&a", "*a", "!!", "- ", ": ", " #", "|", ">", "'", '"', "\\", "$(HF_TOKEN)", "$$(X)"]
NASTY += [
    "---",
    "...",
    "null",
    "~",
    "yes",
    "0x1",
    "1e5",
    "é",
    "😀",
    "\u202e",
    "\ufeff",
    "%",
    "@",
    "`",
    "[",
    "]",
    "?",
    ",",
]
NASTY += [",", "<<: *a", "!!python/object:os.system", "x" * 5000]
BREAKS = ["\n", "\r\n", "\t", "\n---\nkind: Secret\n", "\x00", "\x1b[2J", "\u2028", "\u0085"]
line = st.one_of(
    st.lists(st.sampled_from(NASTY), min_size=1, max_size=8).map("".join),
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=60),
)
lines = st.lists(st.sampled_from(NASTY + BREAKS), min_size=1, max_size=8).map("".join)
anything = st.one_of(line, lines, st.text(st.characters(exclude_categories=("Cs",)), max_size=60))


@settings(max_examples=2000, deadline=None)
@given(text=anything)
def test_the_filter_gives_yaml_one_value_in_one_line(text: str) -> None:
    written = yaml_value(text)
    assert len(written.splitlines()) == 1
    assert yaml.safe_load(f"- {{a: {written}}}") == [{"a": text}] == json.loads(f'[{{"a": {written}}}]')


@settings(max_examples=500, deadline=None)
@given(text=line)
def test_nothing_in_a_value_is_expanded(text: str) -> None:
    assert expand(literal(text), {"HF_TOKEN": "sentinel", "X": "y"}) == text


# --- every value of every template
EVERYTHING = {
    **SCENARIOS["four-nodes"],
    "kubernetes.queue": None,
    "kubernetes.queue_priority": None,
    "kubernetes.nfs": None,
    "kubernetes.storage_class": "fast",
    "kubernetes.gang": "volcano",
    "kubernetes.volcano_queue": "team",
    "kubernetes.env": {"X": "x"},
}
"""A run whose manifests have everything in them that there is."""

FIXED = {"kind", "api_group", "plural", "effect", "operator", "type"}
"""Fields that are ours: which template it is, and words of Kubernetes."""


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where the texts are."""
    if isinstance(value, str):
        yield at
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in FIXED:
                yield from leaves(item, (*at, key))


def with_texts(k: dict[str, Any], texts: dict[tuple[Any, ...], str]) -> KubernetesJob:
    copy = json.loads(json.dumps(k))
    for at, text in texts.items():
        *way, last = at
        holder = copy
        for key in way:
            holder = holder[key]
        holder[last] = text
    return msgspec.convert(copy, KubernetesJob)


@cache
def everything(kind: str) -> tuple[Any, dict[str, Any], list[tuple[Any, ...]], list[Any]]:
    """The job, its values, where their texts are, and what is rendered when each is a word of its own."""
    job = job_of(EVERYTHING, kind)[0]
    k = msgspec.to_builtins(job.kubernetes)
    places = list(leaves(k))
    words = {at: f"<<{number}>>" for number, at in enumerate(places)}
    result = render(replace(job, kubernetes=with_texts(k, words)))
    return job, k, places, [documents(result.files[name]) for name in result.parts]


def substituted(value: Any, texts: list[str]) -> Any:
    """The same objects, with a text in the place of each word."""
    if isinstance(value, str):
        return re.sub(r"<<(\d+)>>", lambda match: texts[int(match[1])], value)
    if isinstance(value, dict):
        return {substituted(key, texts): substituted(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [substituted(item, texts) for item in value]
    return value


def without_files(objects: list[Any]) -> list[Any]:
    return [item | ({"data": None} if item["metadata"]["name"].endswith("-files") else {}) for item in objects]


PLACES = min(len(everything(kind)[2]) for kind in KINDS)


def test_there_are_words_for_everything() -> None:
    assert PLACES >= 40
    for kind in KINDS:
        _, _, places, parts = everything(kind)
        unseen = [at for number, at in enumerate(places) if f"<<{number}>>" not in str(parts)]
        assert unseen in ([], [("files",)]), "a value that is computed for nothing"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=VALUES // PLACES // len(KINDS) + 1, deadline=None)
@given(data=st.data())
def test_every_value_of_every_manifest_may_be_anything_and_stays_itself(kind: str, data: st.DataObject) -> None:
    """All values at once, in all objects, and in those that are in a ConfigMap: 10,000 of them."""
    job, k, places, plain = everything(kind)
    texts = data.draw(st.lists(anything, min_size=len(places), max_size=len(places)))
    result = render(replace(job, kubernetes=with_texts(k, dict(zip(places, texts, strict=True)))))
    for name, expected in zip(result.parts, plain, strict=True):
        assert without_files(documents(result.files[name])) == without_files(substituted(expected, texts))
    companions = documents(result.files["companions.yaml"])
    carried = next(item["data"] for item in companions if item["metadata"]["name"].endswith("-files"))
    assert carried == {name: result.files[name] for name in carried}


# --- from the configuration
def shape(value: Any) -> Any:
    """The structure of a manifest, with the types of its leaves in place of their values."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value)


@settings(max_examples=50, deadline=None)
@given(value=line, directory=line.filter(lambda t: t not in (".", "..")), kind=st.sampled_from(KINDS))
def test_hostile_values_change_no_structure(value: str, directory: str, kind: str) -> None:
    directory = directory.replace("/", "_").replace(":", "_")
    flags = {**SCENARIOS["processes"], "kubernetes.env": {"X": "x"}, "kubernetes.python": "python3"}
    plain, _ = rendered(flags, kind)
    run_dir = Path("/data") / directory / "example"
    hostile, _ = rendered({**flags, "kubernetes.env": {"X": value}, "kubernetes.python": value}, kind, run_dir)
    before, after = documents(plain.script), documents(hostile.script)
    assert shape(before) == shape(after)
    for item in after:
        check(item)
    container = next(item for item in after if item["metadata"]["name"] == "example-prepare")
    container = container["spec"]["template"]["spec"]["containers"][0]
    seen = {"HF_TOKEN": "sentinel"}
    assert expand(container["command"][0], seen) == value
    assert expand(container["args"][1], seen) == str(run_dir)
    assert expand(next(e["value"] for e in container["env"] if e["name"] == "X"), seen) == value
    assert container["volumeMounts"][0]["mountPath"] == str(run_dir.parent)


NAMES = ("claim", "namespace", "queue", "queue_priority", "hf_token_secret", "wandb_secret", "priority_class", "image")
NAMES += ("rdma_resource", "gpu_resource", "topology_key", "service_account", "storage_class", "scheduler_name")
NAMES += ("volcano_queue", "storage_size", "memory", "shm_size", "prepare_memory", "active_deadline")


@settings(max_examples=30, deadline=None)
@given(name=line)
def test_hostile_names_are_refused_with_a_name_that_would_do(name: str) -> None:
    if not re.fullmatch(r"[a-z](?:[-a-z0-9]*[a-z0-9])?", name):
        with pytest.raises(UsageError) as caught:
            check_object_name(name, "pytorchjob", 4)
        suggestion = caught.value.problems[0].fix.rpartition("--name ")[2].rstrip(".")
        assert check_object_name(suggestion, "pytorchjob", 4) == suggestion
    flags = {**SCENARIOS["processes"], **{f"kubernetes.{key}": f"{name} {IMAGE}" for key in NAMES}}
    with pytest.raises(UsageError) as caught:
        rendered(flags)
    refused = {problem.where for problem in caught.value.problems}
    assert {f"kubernetes.{key}" for key in NAMES} <= refused
    assert all(len(problem.what) < 250 for problem in caught.value.problems), "a long name is not repeated in full"
