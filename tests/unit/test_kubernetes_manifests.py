"""Manifests: golden files byte for byte, valid to closed schemas, and hostile values change nothing but themselves.

Write the golden files anew with `FULLFT_CLUSTER_UPDATE_GOLDEN=1 pytest tests/unit/test_kubernetes_manifests.py`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes_scenarios import IMAGE, KINDS, SCENARIOS, rendered
from manifest_schemas import check, documents

from fullft_cluster.errors import UsageError
from fullft_cluster.kubernetes_job import literal
from fullft_cluster.kubernetes_names import check_object_name
from fullft_cluster.lint.check import lint
from fullft_cluster.lint.rules import chosen
from fullft_cluster.quoting import yaml_value
from fullft_cluster.render import environment

GOLDEN = Path(__file__).parents[1] / "golden" / "kubernetes"
ALL = [(name, kind) for name in SCENARIOS for kind in KINDS]


def objects(name: str, kind: str = "pytorchjob") -> dict[str, dict[str, Any]]:
    return {item["kind"]: item for item in documents(rendered(SCENARIOS[name], kind)[0].files["job.yaml"])}


def worker(name: str, kind: str) -> dict[str, Any]:
    """The pod template of the first node."""
    item = list(objects(name, kind).values())[0 if kind != "job" else 1]
    spec = item["spec"]
    if kind == "pytorchjob":
        return dict(spec["pytorchReplicaSpecs"]["Master"]["template"])
    if kind == "trainjob":
        spec = spec["template"]["spec"]
    if kind in ("trainjob", "jobset"):
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    return dict(spec["template"])


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_golden(name: str, kind: str) -> None:
    result, _ = rendered(SCENARIOS[name], kind)
    text = re.sub(r"^  (config\.yaml|plan\.json|deepspeed\.json): .*$", r'  \1: "..."', result.script, flags=re.M)
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
    found = {finding.rule for finding in lint(result.script.encode(), "job.yaml", chosen((), ()))}
    alone = plan.nodes == 1 or "kubernetes.queue" in SCENARIOS[name]
    assert found == (set() if alone else {"k8s-no-gang"})


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
    assert container["args"][-4:-2] == ["--node-rank", "$(NODE_RANK)"]


def test_a_pytorchjob_takes_the_operators_rendezvous_and_the_replicas_index() -> None:
    container = worker("four-nodes", "pytorchjob")["spec"]["containers"][0]
    names = {item["name"] for item in container["env"]}
    assert not names & {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"}
    assert container["args"][-1] == "$(PET_NODE_RANK)"


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_no_pod_has_rights_that_it_does_not_need(name: str, kind: str) -> None:
    items = documents(rendered(SCENARIOS[name], kind)[0].script)
    prepare = next(item for item in items if item["metadata"]["name"] == "example-prepare")["spec"]["template"]
    for template in (worker(name, kind), prepare):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and "privileged" not in context
            rdma = "kubernetes.rdma_resource" in SCENARIOS[name] and template is not prepare
            assert context["capabilities"] == ({"drop": ["ALL"], "add": ["IPC_LOCK"]} if rdma else {"drop": ["ALL"]})
    for role in (item for item in items if item["kind"] == "Role"):
        assert all("*" not in str(rule) and "secrets" not in rule["resources"] for rule in role["rules"])
        own = next(rule for rule in role["rules"] if rule["apiGroups"] != [""])
        assert own["resourceNames"] == ["example"]
        job = next(item for item in items if item["kind"].lower() == kind and item["metadata"]["name"] == "example")
        assert own["apiGroups"] == [job["apiVersion"].partition("/")[0]]
        assert own["resources"] == [f"{kind}s"]


def test_secrets_are_named_and_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "sentinel-of-a-secret")
    for name, kind in ALL:
        result, _ = rendered(SCENARIOS[name], kind)
        assert "sentinel-of-a-secret" not in "".join(result.files.values()) + result.script
    env = {item["name"]: item for item in worker("four-nodes", "jobset")["spec"]["containers"][0]["env"]}
    assert env["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "HF_TOKEN"}}
    assert env["WANDB_API_KEY"]["valueFrom"] == {"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}}


def test_the_config_map_holds_the_runs_files_byte_for_byte() -> None:
    result, _ = rendered(SCENARIOS["four-nodes"])
    data = next(item for item in documents(result.script) if item["kind"] == "ConfigMap")["data"]
    assert data == {name: result.files[name] for name in ("config.yaml", "plan.json", "deepspeed.json")}


def test_the_directory_is_one_for_kustomize() -> None:
    result, _ = rendered(SCENARIOS["own-claim"], "jobset")
    kustomization = yaml.safe_load(result.files["kustomization.yaml"])
    assert kustomization["sortOptions"] == {"order": "fifo"}
    assert kustomization["resources"] == ["storage.yaml", "companions.yaml", "prepare.yaml", "job.yaml"]
    assert result.script == "---\n".join(result.files[name] for name in kustomization["resources"])


def test_rendering_twice_gives_the_same_bytes() -> None:
    assert rendered(SCENARIOS["four-nodes"])[0] == rendered(SCENARIOS["four-nodes"])[0]


def test_a_template_with_an_unknown_name_fails() -> None:
    import jinja2

    for text in ("{{ nothing }}", "{{ nothing | yaml }}", "{{ k.nothing | yaml }}"):
        with pytest.raises((jinja2.UndefinedError, TypeError)):
            environment("manifests").from_string(text).render(k={})


def test_every_value_of_a_template_passes_the_filter() -> None:
    """But for those that are rendered YAML themselves, and the ConfigMap's three constant keys."""
    for path in (Path(__file__).parents[2] / "manifests").glob("*.j2"):
        for expression in re.findall(r"{{(.*?)}}", path.read_text()):
            rendered_yaml = re.match(r" (worker|common|security|volume|metadata|jobset_spec|name|kind)\b", expression)
            assert "| yaml" in expression or rendered_yaml, f"{path.name}: {expression}"


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


NASTY = [
    "{{",
    "}}",
    "{%",
    "&a",
    "*a",
    "!!",
    "- ",
    ": ",
    " #",
    "|",
    ">",
    "'",
    '"',
    "\\",
    "$(HF_TOKEN)",
    "$$(X)",
    "\ufeff",
]
NASTY += ["---", "null", "~", "yes", "0x1", "1e5", "é", "😀", "\u202e", "%", "@", "`", "[", "]", "?", ","]
line = st.one_of(
    st.lists(st.sampled_from(NASTY), min_size=1, max_size=8).map("".join),
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=60),
)


@settings(max_examples=1000, deadline=None)
@given(text=st.one_of(line, st.text(st.characters(exclude_categories=("Cs",)), max_size=60)))
def test_the_filter_gives_yaml_one_value_in_one_line(text: str) -> None:
    written = yaml_value(text)
    assert len(written.splitlines()) == 1
    assert yaml.safe_load(f"- {{a: {written}}}") == [{"a": text}] == json.loads(f'[{{"a": {written}}}]')


@settings(max_examples=500, deadline=None)
@given(text=line)
def test_nothing_in_a_value_is_expanded(text: str) -> None:
    assert expand(literal(text), {"HF_TOKEN": "sentinel", "X": "y"}) == text


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


@settings(max_examples=30, deadline=None)
@given(name=line)
def test_hostile_names_are_refused_with_a_name_that_would_do(name: str) -> None:
    if not re.fullmatch(r"[a-z](?:[-a-z0-9]*[a-z0-9])?", name):
        with pytest.raises(UsageError) as caught:
            check_object_name(name, "pytorchjob", 4)
        suggestion = caught.value.problems[0].fix.rpartition("--name ")[2].rstrip(".")
        assert check_object_name(suggestion, "pytorchjob", 4) == suggestion
    for key in ("claim", "namespace", "queue", "hf_token_secret", "priority_class", "image", "rdma_resource"):
        with pytest.raises(UsageError, match=f"kubernetes.{key}"):
            rendered({**SCENARIOS["processes"], f"kubernetes.{key}": f"{name} {IMAGE}"})
