"""Manifests: golden files byte for byte, valid to closed schemas, without a trap of our own linter.

Write the golden files anew with `FULLFT_CLUSTER_UPDATE_GOLDEN=1 pytest tests/unit/test_kubernetes_manifests.py`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_scenarios import KINDS, SCENARIOS, objects, rendered, worker
from manifest_schemas import check, documents

from fullft_cluster.lint.check import lint
from fullft_cluster.lint.rules import chosen
from fullft_cluster.render import environment

GOLDEN = Path(__file__).parents[1] / "golden" / "kubernetes"
ALL = [(name, kind) for name in SCENARIOS for kind in KINDS]


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_golden(name: str, kind: str) -> None:
    result, _ = rendered(SCENARIOS[name], kind)
    carried = r"^  (config\.yaml|plan\.json|deepspeed\.json|supervisor\.yaml|job\.yaml): .*$"
    text = re.sub(carried, r'  \1: "..."', result.script, flags=re.M)
    path = GOLDEN / f"{name}.{kind}.yaml"
    if os.environ.get("FULLFT_CLUSTER_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"if this is meant: FULLFT_CLUSTER_UPDATE_GOLDEN=1 pytest {__file__}"


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_every_object_is_valid_to_the_closed_schemas(name: str, kind: str) -> None:
    found = documents(rendered(SCENARIOS[name], kind)[0].script)
    for item in found:
        check(item)
    names = [(item["kind"], item["metadata"]["name"]) for item in found]
    assert len(names) == len(set(names)), "an object stands twice"
    expected = {"ConfigMap", "NetworkPolicy", "Job"}
    if "kubernetes.service_account" not in SCENARIOS[name]:
        expected |= {"ServiceAccount", "Role", "RoleBinding"}
    if "kubernetes.gang" in SCENARIOS[name]:
        expected |= {"PodGroup"}
    expected |= {
        "pytorchjob": {"PyTorchJob"},
        "trainjob": {"TrainJob", "TrainingRuntime"},
        "jobset": {"JobSet"},
        "job": {"Service"},
    }[kind]
    assert {item["kind"] for item in found} - {"PersistentVolumeClaim"} == expected


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_lint_finds_no_trap_but_what_only_a_queue_takes_away(name: str, kind: str) -> None:
    result, plan = rendered(SCENARIOS[name], kind)
    alone = plan.nodes == 1 or {"kubernetes.queue", "kubernetes.gang"} & set(SCENARIOS[name])
    assert linted(result.script) == (set() if alone else {"k8s-no-gang"})
    assert linted(result.files["job.yaml"]) == linted(result.script), "each file stands by itself"


def linted(text: str) -> set[str]:
    return {finding.rule for finding in lint(text.encode(), "job.yaml", chosen((), ()))}


@pytest.mark.parametrize("kind", KINDS)
def test_what_our_manifests_ignore_is_in_them_and_nothing_more(kind: str) -> None:
    text = rendered(SCENARIOS["volcano"], kind)[0].script
    comments = re.findall(r"^ *# lint: ignore (.*)", text, re.M)
    assert linted(re.sub(r"^ *# lint: ignore .*\n", "", text, flags=re.M)) == {
        rule for words in comments for rule in words.split(", ")
    }
    assert bool(comments) == (kind == "pytorchjob")


@pytest.mark.parametrize("kind", KINDS)
def test_the_schemas_refuse_an_unknown_field_and_a_wrong_type(kind: str) -> None:
    text = rendered(SCENARIOS["four-nodes"], kind)[0].files["job.yaml"]
    for old, new in (
        ("terminationGracePeriodSeconds:", "terminationGraceSeconds:"),
        ("mountPath: /dev/shm", "mountPaths: /dev/shm"),
        ("automountServiceAccountToken: false", 'automountServiceAccountToken: "no"'),
        ("runAsNonRoot: true", "runAsNonRoot: 1"),
    ):
        assert old in text
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            for item in documents(text.replace(old, new)):
                check(item)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_come_from_the_plan(kind: str) -> None:
    _, plan = rendered(SCENARIOS["four-nodes"], kind)
    spec = worker("four-nodes", kind)["spec"]
    container = spec["containers"][0]
    assert spec["terminationGracePeriodSeconds"] == plan.signal_lead_seconds
    assert container["resources"]["limits"]["nvidia.com/gpu"] == str(plan.gpus_per_node)
    assert container["resources"]["limits"]["rdma/hca_shared_devices_a"] == "1"
    assert container["name"] == ("pytorch" if kind == "pytorchjob" else "node"), "the operators look for this name"
    found = objects("four-nodes", kind)
    if kind == "pytorchjob":
        replicas = found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]
        assert replicas["Master"]["replicas"] + replicas["Worker"]["replicas"] == plan.nodes == 4
        assert replicas["Master"]["template"] == replicas["Worker"]["template"]
    if kind == "trainjob":
        assert found["TrainJob"]["spec"]["trainer"]["numNodes"] == plan.nodes
        assert found["TrainJob"]["spec"]["runtimeRef"]["name"] == found["TrainingRuntime"]["metadata"]["name"]
    if kind == "job":
        assert found["Job"]["spec"]["parallelism"] == found["Job"]["spec"]["completions"] == plan.nodes
        assert spec["subdomain"] == found["Service"]["metadata"]["name"]
        labels = worker("four-nodes", kind)["metadata"]["labels"]
        assert found["Service"]["spec"]["selector"].items() <= labels.items()


@pytest.mark.parametrize(
    ("kind", "address"),
    [("trainjob", "example-node-0-0.example"), ("jobset", "example-node-0-0.example"), ("job", "example-0.example")],
)
def test_the_first_pod_is_found_by_its_name(kind: str, address: str) -> None:
    container = worker("four-nodes", kind)["spec"]["containers"][0]
    env = {item["name"]: item for item in container["env"]}
    assert env["MASTER_ADDR"]["value"] == address
    assert "job-completion-index" in env["NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert container["args"][-4:] == ["--node-rank", "$(NODE_RANK)", "--stopped-exit", "75"]


def test_a_pytorchjob_takes_the_operators_rendezvous_and_the_replicas_index() -> None:
    container = worker("four-nodes", "pytorchjob")["spec"]["containers"][0]
    names = {item["name"] for item in container["env"]}
    assert not names & {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"}
    assert container["args"][-4:] == ["--node-rank", "$(PET_NODE_RANK)", "--stopped-exit", "143"], (
        "75 would end the job"
    )


def test_secrets_are_named_and_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "sentinel-of-a-secret")
    for name, kind in ALL:
        result, _ = rendered(SCENARIOS[name], kind)
        assert "sentinel-of-a-secret" not in "".join(result.files.values()) + result.script
    env = {item["name"]: item for item in worker("four-nodes", "jobset")["spec"]["containers"][0]["env"]}
    assert env["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "HF_TOKEN"}}
    assert env["WANDB_API_KEY"]["valueFrom"] == {"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}}


def test_the_config_maps_hold_the_runs_files_byte_for_byte_and_nothing_yet() -> None:
    result, _ = rendered(SCENARIOS["four-nodes"])
    maps = {item["metadata"]["name"]: item for item in documents(result.script) if item["kind"] == "ConfigMap"}
    files = ("config.yaml", "plan.json", "deepspeed.json", "prepare.yaml", "supervisor.yaml", "job.yaml")
    assert maps["example-files"]["data"] == {name: result.files[name] for name in files}
    assert "data" not in maps["example-state"], "applying the manifests again must not take the run's state away"


def test_the_directory_is_one_for_kustomize() -> None:
    result, _ = rendered(SCENARIOS["own-claim"], "jobset")
    kustomization = yaml.safe_load(result.files["kustomization.yaml"])
    assert kustomization["sortOptions"] == {"order": "fifo"}
    order = ["storage.yaml", "companions.yaml", "prepare.yaml", "supervisor.yaml", "job.yaml"]
    assert kustomization["resources"] == order
    assert result.script == "---\n".join(result.files[name] for name in kustomization["resources"])


def test_rendering_twice_gives_the_same_bytes() -> None:
    assert rendered(SCENARIOS["four-nodes"])[0] == rendered(SCENARIOS["four-nodes"])[0]


def test_a_template_with_an_unknown_name_fails() -> None:
    import jinja2

    for text in ("{{ nothing }}", "{{ nothing | yaml }}", "{{ k.nothing | yaml }}"):
        with pytest.raises((jinja2.UndefinedError, TypeError)):
            environment("manifests").from_string(text).render(k={})


def test_every_value_of_a_template_passes_the_filter() -> None:
    """But for those that are rendered YAML themselves, and the ConfigMap's constant keys."""
    for path in (Path(__file__).parents[2] / "manifests").glob("*.j2"):
        for expression in re.findall(r"{{(.*?)}}", path.read_text()):
            rendered_yaml = re.match(
                r" (worker|common|security|volume|metadata|jobset_spec|pod_group|name|kind)\b", expression
            )
            assert "| yaml" in expression or rendered_yaml, f"{path.name}: {expression}"
