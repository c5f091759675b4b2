"""What the pods of a run may do: on their nodes, over the network, and with the API."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes_scenarios import KINDS, SCENARIOS, rendered, worker
from manifest_schemas import documents

from fullft_cluster.errors import UsageError

ALL = [(name, kind) for name in SCENARIOS for kind in KINDS]


def every_object(name: str, kind: str, **flags: Any) -> dict[tuple[str, str], dict[str, Any]]:
    items = documents(rendered({**SCENARIOS[name], **flags}, kind)[0].script)
    return {(item["kind"], item["metadata"]["name"]): item for item in items}


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_no_pod_has_rights_that_it_does_not_need(name: str, kind: str) -> None:
    found = every_object(name, kind)
    parts = ("example-prepare", "example-supervisor")
    prepare, supervisor = (found["Job", part]["spec"]["template"] for part in parts)
    for template in (worker(name, kind), prepare, supervisor):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is (template is supervisor), "one pod talks to the API server"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and "privileged" not in context
            rdma = (
                "kubernetes.rdma_resource" in SCENARIOS[name] and template is not prepare and template is not supervisor
            )
            assert context["capabilities"] == ({"drop": ["ALL"], "add": ["IPC_LOCK"]} if rdma else {"drop": ["ALL"]})
    secrets = "secretKeyRef"
    assert secrets not in str(supervisor), "it needs no token of the hub"


CHILD = {("batch", "jobs", "example-node-0", verb) for verb in ("get", "patch")}
OWN = {
    "pytorchjob": ("kubeflow.org", "pytorchjobs"),
    "trainjob": ("trainer.kubeflow.org", "trainjobs"),
    "jobset": ("jobset.x-k8s.io", "jobsets"),
    "job": ("batch", "jobs"),
}
"""What the supervisor watches, suspends and changes: API group and resource."""

EVERY_KIND = {
    *(("", "pods", "*", verb) for verb in ("get", "list", "watch", "delete", "patch")),
    ("", "configmaps", "example-state", "get"),
    ("", "configmaps", "example-state", "patch"),
    ("batch", "jobs", "example-prepare", "get"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_role_allows_exactly_what_the_supervisor_does(kind: str) -> None:
    found = every_object("four-nodes", kind)
    rules = found["Role", "example"]["rules"]
    allowed = {
        (group, resource, name, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", ["*"])
        for verb in rule["verbs"]
    }
    own = {(*OWN[kind], "example", verb) for verb in ("get", "list", "watch", "patch")}
    assert allowed == EVERY_KIND | own | (CHILD if kind in ("jobset", "trainjob") else set())
    assert all(set(rule) <= {"apiGroups", "resources", "resourceNames", "verbs"} for rule in rules)
    binding = found["RoleBinding", "example"]
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "example"}
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "example", "namespace": "nlp"}]
    assert found["ServiceAccount", "example"]["automountServiceAccountToken"] is False


def test_nothing_is_for_the_whole_cluster() -> None:
    for name, kind in ALL:
        items = documents(rendered(SCENARIOS[name], kind)[0].script)
        assert not [item["kind"] for item in items if item["kind"].startswith("Cluster")]
        wanted = SCENARIOS[name].get("kubernetes.namespace", "default")
        assert {item["metadata"]["namespace"] for item in items} == {wanted}


def test_the_users_own_service_account_gets_no_rights() -> None:
    found = every_object("two-nodes-efa", "jobset")
    assert not {"ServiceAccount", "Role", "RoleBinding"} & {kind for kind, _ in found}
    spec = found["Job", "example-supervisor"]["spec"]["template"]["spec"]
    assert (spec["serviceAccountName"], spec["automountServiceAccountToken"]) == ("trainer", True)


def test_the_network_is_the_runs_own_and_what_it_must_reach() -> None:
    policy = every_object("volcano", "job")["NetworkPolicy", "example"]["spec"]
    ours = {"podSelector": {"matchLabels": {"app.kubernetes.io/instance": "example"}}}
    assert {"podSelector": policy["podSelector"]} == ours
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [{"from": [ours]}], "no port is open to anybody else"
    inside, outside = policy["egress"]
    assert inside == {"to": [ours]}
    assert [(item["protocol"], item["port"]) for item in outside["ports"]] == [
        *(("UDP", 53), ("UDP", 5353)),  # DNS, and the pods of OpenShift's DNS behind it
        *(("TCP", port) for port in (53, 443, 3128, 5353, 6443)),  # 3128: kubernetes.egress_ports
    ]
    assert set(outside) == {"ports"}


@pytest.mark.parametrize("ports", [[0], [65536], ["https"], [-1]])
def test_a_port_that_is_none_is_refused(ports: list[Any]) -> None:
    with pytest.raises(UsageError, match="egress_ports"):
        rendered({**SCENARIOS["volcano"], "kubernetes.egress_ports": ports})


def test_every_pod_of_the_run_is_in_the_policy_and_only_workers_are_behind_the_service() -> None:
    found = every_object("volcano", "job")
    labels = {
        name: found["Job", name]["spec"]["template"]["metadata"]["labels"] for kind, name in found if kind == "Job"
    }
    selector = found["NetworkPolicy", "example"]["spec"]["podSelector"]["matchLabels"]
    assert len(labels) == 3 and all(selector.items() <= pod.items() for pod in labels.values())
    service = found["Service", "example"]["spec"]["selector"]
    assert [name for name, pod in labels.items() if service.items() <= pod.items()] == ["example"]
