"""Whether a ResourceQuota leaves room for a run, and whether a claim can hold it."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes_scenarios import KINDS, SCENARIOS, rendered

from fullft_cluster.backends.kubernetes_objects import documents
from fullft_cluster.backends.kubernetes_quota import demand, quota_problems
from fullft_cluster.backends.kubernetes_references import claim_problems


def objects(kind: str = "pytorchjob", scenario: str = "four-nodes") -> list[dict[str, Any]]:
    result, _ = rendered(SCENARIOS[scenario], kind)
    return documents(result.files[part] for part in result.parts)


def quota(hard: dict[str, str], used: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "team"}, "spec": {"hard": hard, **spec}, "status": {"hard": hard, "used": used or {}}}


def problems(quota: dict[str, Any], kind: str = "pytorchjob", **how: bool) -> list[str]:
    return [str(problem) for problem in quota_problems([quota], objects(kind), **how)]


@pytest.mark.parametrize("kind", KINDS)
def test_four_nodes_of_eight_gpus_are_32_whatever_runs_them(kind: str) -> None:
    need = demand(objects(kind))
    assert need["requests.nvidia.com/gpu"] == need["limits.nvidia.com/gpu"] == 32
    assert need["pods"] == 4 + 2  # the workers, the preparation, the supervisor
    assert need["limits.memory"] == need["requests.memory"] == need["memory"] > 32 * 2**30
    assert need["count/jobs.batch"] == (3 if kind == "job" else 2)
    assert need["configmaps"] == need["count/configmaps"] == 2


def test_storage_counts_by_its_class_too() -> None:
    need = demand(objects(scenario="own-claim"))
    assert need["requests.storage"] == need["filestore.storageclass.storage.k8s.io/requests.storage"] == 2 * 2**40
    assert need["persistentvolumeclaims"] == 1


def test_room_is_what_is_left() -> None:
    assert problems(quota({"requests.nvidia.com/gpu": "32", "pods": "6"})) == []
    (told,) = problems(quota({"requests.nvidia.com/gpu": "40"}, {"requests.nvidia.com/gpu": "16"}))
    assert told.startswith(
        "ResourceQuota team: requests.nvidia.com/gpu: the run needs 32, and 24 of 40 are left. Ask for less (--max-gpus"
    )
    (told,) = problems(quota({"limits.memory": "10Gi", "requests.cpu": "10000"}))
    assert "limits.memory: the run needs" in told and "10Gi of 10Gi are left" in told


def test_where_kueue_waits_for_room_only_what_never_fits_is_in_the_way() -> None:
    used = quota({"requests.nvidia.com/gpu": "40"}, {"requests.nvidia.com/gpu": "40"})
    assert problems(used, waits=True) == []
    assert problems(quota({"requests.nvidia.com/gpu": "16"}), waits=True)


def test_a_quota_of_limits_asks_every_container_for_them() -> None:
    (told,) = problems(quota({"limits.cpu": "1000"}))
    assert "it asks every container for limits.cpu" in told and "LimitRange" in told
    assert problems(quota({"limits.cpu": "1000"}), has_default_limits=True) == []


@pytest.mark.parametrize(
    ("spec", "counted"),
    [
        ({"scopes": ["BestEffort"]}, False),
        ({"scopes": ["NotBestEffort"]}, True),
        ({"scopes": ["Terminating"]}, False),
        ({"scopes": ["NotTerminating"]}, True),
        (
            {
                "scopeSelector": {
                    "matchExpressions": [
                        _in := {"scopeName": "PriorityClass", "operator": "In", "values": ["training"]}
                    ]
                }
            },
            True,
        ),
        ({"scopeSelector": {"matchExpressions": [_in | {"values": ["other"]}]}}, False),
        ({"scopeSelector": {"matchExpressions": [_in | {"operator": "NotIn"}]}}, False),
        ({"scopes": ["CrossNamespacePodAffinity"]}, False),
    ],
)
def test_scopes(spec: dict[str, Any], counted: bool) -> None:
    assert bool(problems(quota({"requests.nvidia.com/gpu": "1"}, **spec))) is counted


def claim(*modes: str, phase: str = "Bound", **metadata: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "runs", **metadata},
        "spec": {"accessModes": list(modes)},
        "status": {"phase": phase, "accessModes": list(modes) if phase == "Bound" else []},
    }


@pytest.mark.parametrize(
    ("one", "nodes", "words"),
    [
        (claim("ReadWriteMany"), 4, None),
        (claim("ReadWriteOnce", "ReadWriteMany"), 4, None),
        (claim("ReadWriteMany", phase="Pending"), 4, None),
        (claim("ReadWriteOnce"), 1, None),
        (claim("ReadWriteOnce"), 2, "is ReadWriteOnce, for one node, and the run has 2"),
        (claim("ReadWriteOncePod"), 1, "is ReadWriteOncePod, and several pods write to it"),
        (claim("ReadOnlyMany"), 1, "is ReadOnlyMany"),
        (claim("ReadWriteMany", phase="Lost"), 1, "has lost its volume"),
        (claim("ReadWriteMany", deletionTimestamp="2026-01-05T10:00:00Z"), 1, "is being deleted"),
    ],
)
def test_claims(one: dict[str, Any], nodes: int, words: str | None) -> None:
    told = [str(problem) for problem in claim_problems(one, nodes)]
    assert len(told) == (words is not None)
    assert words is None or words in told[0]
