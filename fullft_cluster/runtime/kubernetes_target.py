"""The run's own objects in the cluster, as its supervisor changes them: nodes are excluded, dead pods are released."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fullft_cluster.errors import FullftError
from fullft_cluster.kubernetes_api import Api, ApiError, Json, NotFound, Watched, object_path
from fullft_cluster.plan import Frozen
from fullft_cluster.rundir import write_json
from fullft_cluster.runtime import pod_state

KINDS = {"pytorchjob": "PyTorchJob", "trainjob": "TrainJob", "jobset": "JobSet", "job": "Job"}

POLL_SECONDS = 1.0
SUSPEND_SECONDS = 900.0
"""How long pods may take to leave after a suspend: more than a checkpoint takes."""

log = logging.getLogger("supervisor")


class Target(Frozen, frozen=True):
    """Which objects are the run's."""

    name: str
    namespace: str
    kind: str
    """`pytorchjob`, `trainjob`, `jobset` or `job`."""

    @property
    def path(self) -> str:
        """Return the path of the training object."""
        return object_path(KINDS[self.kind], self.namespace, self.name)

    @property
    def kind_path(self) -> str:
        """Return the path of all objects of that kind."""
        return object_path(KINDS[self.kind], self.namespace)

    @property
    def template_path(self) -> str:
        """Return the path of the object whose pod template can still be changed.

        A JobSet's cannot (`field is immutable` for the affinity, even while it is suspended), and a TrainJob with an
        affinity in its runtimePatches is refused by that; the Job that they make can, while it is suspended.
        """
        return object_path("Job", self.namespace, f"{self.name}-node-0") if self.is_jobset else self.path

    @property
    def is_jobset(self) -> bool:
        """Return whether a JobSet makes the pods."""
        return self.kind in ("jobset", "trainjob")

    @property
    def state_path(self) -> str:
        """Return the path of the ConfigMap in which the supervisor and people's commands meet."""
        return object_path("ConfigMap", self.namespace, f"{self.name}-state")

    @property
    def pods_path(self) -> str:
        """Return the path of all pods of the namespace."""
        return object_path("Pod", self.namespace)

    @property
    def pods_selector(self) -> str:
        """Return the labels of the run's training pods."""
        return self.selector("worker")

    def selector(self, component: str) -> str:
        """Return the labels of the run's pods of a component."""
        return f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"


def release(api: Api, target: Target, pod: Json) -> None:
    """Have a pod of a dead node replaced: nobody is left there to say that it has ended.

    A Job whose policy looks at failures makes a new pod only once the old one has failed
    (https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-replacement-policy), which nobody can say now,
    so its finalizer is taken away as well. (To say it here would take a right on pods/status, which the users of a
    namespace do not have, so they could not give it.)
    """
    name = pod["metadata"]["name"]
    path = object_path("Pod", target.namespace, name)
    log.warning("releasing pod %s: its node %s does not answer", name, pod["spec"].get("nodeName"))
    try:
        api.delete(path, grace_seconds=0, uid=pod["metadata"]["uid"])
        if (left := api.find(path)) and left["metadata"]["uid"] == pod["metadata"]["uid"]:
            ours = {"uid": pod["metadata"]["uid"], "finalizers": None}
            api.merge_patch(path, {"metadata": ours})
    except NotFound:
        return


def exclude(api: Api, target: Target, pods: Watched, nodes: Iterable[str], marker: Path) -> None:
    """Keep the run's future pods off these nodes. ``marker`` is a file that is there while the job is suspended for it.

    Raises ApiError where the server refuses, FullftError when time is up.

    A PyTorchJob's pods are deleted where they stand on such a node and made anew elsewhere. The pods of the others are
    all made anew, as their template can be changed only while the job is suspended.
    """
    nodes = sorted(set(nodes))
    log.info("excluding %s", ", ".join(nodes))
    if target.kind == "pytorchjob":
        spec = api.get(target.path)["spec"]["pytorchReplicaSpecs"]
        roots = [(f"/spec/pytorchReplicaSpecs/{role}/template/spec", spec[role]["template"]["spec"]) for role in spec]
        api.json_patch(target.path, [step for root, found in roots for step in _steps(root, found, nodes)])
        for name, pod in pods.items().items():
            if pod["spec"].get("nodeName") in nodes:
                api.delete(object_path("Pod", target.namespace, name), uid=pod["metadata"]["uid"])
        return
    write_json(marker, {"excluding": nodes})
    set_suspended(api, target, suspended=True)
    try:
        _wait_until_gone(pods)
        found = api.get(target.template_path)["spec"]["template"]["spec"]
        api.json_patch(target.template_path, _steps("/spec/template/spec", found, nodes))
    finally:
        set_suspended(api, target, suspended=False)
        marker.unlink(missing_ok=True)


def set_suspended(api: Api, target: Target, *, suspended: bool) -> None:
    """Suspend or resume the training object: its pods are told to go, or made."""
    value: Json = {"suspend": suspended}
    api.merge_patch(target.path, {"spec": {"runPolicy": value} if target.kind == "pytorchjob" else value})


def _wait_until_gone(pods: Watched) -> None:
    deadline = time.monotonic() + SUSPEND_SECONDS
    while any(not pod_state.ended(pod) for pod in pods.items().values()):
        if time.monotonic() > deadline:
            raise FullftError(f"the pods are still there {SUSPEND_SECONDS:.0f} s after their job was suspended")
        pods.wait(POLL_SECONDS)


def _steps(root: str, spec: Json, nodes: list[str]) -> list[dict[str, Any]]:
    """Return the JSON Patch that keeps the pods of a template off the nodes, whatever affinity it has.

    By the node's name, which no label stands for everywhere; each requirement takes one name.
    """
    off = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    affinity = dict(spec.get("affinity") or {})
    own = dict(affinity.get("nodeAffinity") or {})
    required = own.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = [dict(term) for term in required.get("nodeSelectorTerms") or ()] or [{}]
    for term in terms:  # any one of them has to hold
        others = [field for field in term.get("matchFields") or () if field.get("operator") != "NotIn"]
        term["matchFields"] = [*others, *off]
    own["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    return [{"op": "add", "path": f"{root}/affinity", "value": {**affinity, "nodeAffinity": own}}]


def job_or_none(api: Api, target: Target) -> Json | None:
    """Return the training object; None when it is not there, or while the server does not answer."""
    try:
        return api.find(target.path)
    except ApiError as error:
        log.warning("%s", error)
        return {}
