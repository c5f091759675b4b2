"""The noun KubernetesJob: every value of the manifests, computed from Config, Plan and Cluster. Pure."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from typing import Any

from fullft_cluster import __version__
from fullft_cluster.config import Config, KubernetesConfig, KubernetesKind
from fullft_cluster.errors import UsageError
from fullft_cluster.hardware import Cluster
from fullft_cluster.kubernetes_check import kubernetes_problems
from fullft_cluster.kubernetes_names import check_object_name, is_label_value
from fullft_cluster.kubernetes_pod import GANGS, Pod, literal, make_pod
from fullft_cluster.plan import Frozen, Plan
from fullft_cluster.units import duration_seconds

DISK_MARGIN = 1.2
"""Of the run's own claim over the plan's estimate, for prepared data and logs. Default."""

FILES = "/etc/fullft-cluster"
"""Where the ConfigMap with config.yaml, plan.json and deepspeed.json is mounted."""

PORT = 29500
"""Of the rendezvous. Each pod has an address of its own, so two jobs do not meet."""

EGRESS_PORTS = (53, 443, 5353, 6443)
"""DNS, HTTPS (the hub), the pods of OpenShift's DNS, the API server: a policy sees the port that a Service leads to.

A volume (NFS, CSI) is mounted by the node, not by the pod."""

MAX_RESTARTS = 1000
"""Of the controllers: a far bound. The budget of failures is the supervisor's, who tells them from preemptions."""

DEADLINE_FACTOR = 3.0
"""Of the active deadline over the longest of the estimate: what takes that long stands still. Default."""

DEADLINE_SECONDS = 24 * 3600
"""The least active deadline: data, images and restarts of a short run. Default."""


_OWN = {  # API group, plural
    "pytorchjob": ("kubeflow.org", "pytorchjobs"),
    "trainjob": ("trainer.kubeflow.org", "trainjobs"),
    "jobset": ("jobset.x-k8s.io", "jobsets"),
    "job": ("batch", "jobs"),
}


class PodGroup(Frozen, frozen=True):
    """What is made beside the pods, so that they start together."""

    api_version: str
    queue: str | None
    priority_class: str | None


class Claim(Frozen, frozen=True):
    """The run's own PersistentVolumeClaim."""

    name: str
    size: str
    storage_class: str | None


class KubernetesJob(Frozen, frozen=True):
    """Values of the manifests."""

    name: str
    namespace: str
    kind: KubernetesKind
    api_group: str
    plural: str
    labels: dict[str, str]
    """The recommended ones, but for the component."""
    selector: dict[str, str]
    """Labels by which all pods of the run are found."""
    queue_labels: dict[str, str]
    run_dir: str
    """As an argument: `$` is doubled, for Kubernetes expands `$(NAME)` in arguments."""
    files: str
    mount_path: str
    volume: dict[str, Any]
    claim: Claim | None
    service_account: str
    own_service_account: bool
    pod: Pod
    nodes: int
    gpus_per_node: int
    pod_group: PodGroup | None
    egress_ports: tuple[int, ...]
    """TCP ports that the pods may reach outside of the run."""
    active_deadline_seconds: int | None
    starts_suspended: bool
    """Until the data is prepared; a queue decides itself when a job starts."""
    max_restarts: int = MAX_RESTARTS


def kubernetes_job(config: Config, cluster: Cluster, plan: Plan, run_dir: Path, memory_gib: int) -> KubernetesJob:
    """Make the values of the manifests. ``memory_gib``: what one node's workers need of the host.

    Raises UsageError with every problem of the section `kubernetes` at once.
    """
    own, name = config.kubernetes, run_dir.name
    mount_path = own.mount_path or str(run_dir.parent)
    problems = list(kubernetes_problems(own, cluster, run_dir, mount_path))
    try:
        check_object_name(name, own.kind, plan.nodes)
    except UsageError as error:
        problems += error.problems
    if problems:
        raise UsageError(problems)
    group, plural = _OWN[own.kind]
    volume, claim = _volume(own, plan, name)
    selector = {"app.kubernetes.io/instance": name}
    return KubernetesJob(
        name=name,
        namespace=own.namespace,
        kind=own.kind,
        api_group=group,
        plural=plural,
        labels={**_labels(), **selector},
        selector=selector,
        queue_labels=_queue_labels(own),
        run_dir=literal(str(run_dir)),
        files=FILES,
        mount_path=mount_path,
        volume=volume,
        claim=claim,
        service_account=own.service_account or name,
        own_service_account=own.service_account is None,
        pod=make_pod(own, cluster, plan, name=name, mount_path=mount_path, memory_gib=memory_gib),
        nodes=plan.nodes,
        gpus_per_node=plan.gpus_per_node,
        pod_group=_pod_group(own),
        egress_ports=tuple(sorted({*EGRESS_PORTS, *own.egress_ports})),
        active_deadline_seconds=_active_deadline(own, plan),
        starts_suspended=own.queue is None,
    )


def _pod_group(own: KubernetesConfig) -> PodGroup | None:
    if own.gang is None:
        return None
    gang = GANGS[own.gang]
    return PodGroup(
        api_version=gang.api_version,
        queue=own.volcano_queue if gang.has_queue else None,
        priority_class=own.priority_class if gang.has_queue else None,
    )


def _active_deadline(own: KubernetesConfig, plan: Plan) -> int | None:
    """Return the seconds after which the training is ended for good; None for never."""
    if own.active_deadline is not None:
        return None if own.active_deadline == "none" else round(duration_seconds(own.active_deadline))
    if plan.time.hours is None:
        return None
    return max(DEADLINE_SECONDS, round(DEADLINE_FACTOR * plan.time.hours.high * 3600))


def kubernetes_notes(config: Config, cluster: Cluster, nodes: int) -> list[str]:
    """Return what the user should know: what the pods may not see of what is named here."""
    own, notes = config.kubernetes, []
    mount = PurePosixPath(own.mount_path or config.output.runs_dir)
    data = config.data
    paths = {f"data.{key}": getattr(data, key) for key in ("train", "validation", "chat_template")}
    paths |= {f"data.sources[{number}].path": source.path for number, source in enumerate(data.sources)}
    paths = {key: path for key, path in paths.items() if str(path).startswith("/")}  # others are on the hub
    paths["data.cache_dir"] = data.cache_dir
    named = {key: getattr(config, key) for key in ("weights", "model", "tokenizer")}
    paths |= {key: path for key, path in named.items() if str(path).startswith("/")}
    for key, path in paths.items():
        if path is not None and not PurePosixPath(path).is_relative_to(mount):
            notes.append(f"{key} {path} is not below {mount}, which is what the pods mount: the image has to have it")
    if not (own.claim or own.host_path or own.nfs):
        notes.append("the run gets a claim of its own, which is empty: copy the data into it, or name kubernetes.claim")
    if nodes > 1 and own.queue is None and own.gang is None:
        notes.append(
            f"nothing starts the {nodes} pods together: where jobs compete for nodes, name kubernetes.queue or .gang"
        )
    if cluster.setup:
        notes.append(f"the setup lines of cluster profile {cluster.name} are for hosts: they do not run in containers")
    return notes


def _labels() -> dict[str, str]:
    """Return the recommended labels.

    https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/
    """
    labels = {
        "app.kubernetes.io/name": "fullft-cluster",
        "app.kubernetes.io/version": __version__.replace("+", "-"),
        "app.kubernetes.io/part-of": "fullft-cluster",
        "app.kubernetes.io/managed-by": "fullft-cluster",
    }
    return {key: value for key, value in labels.items() if is_label_value(value)}


def _queue_labels(own: KubernetesConfig) -> dict[str, str]:
    """Return Kueue's labels (https://kueue.sigs.k8s.io/docs/reference/labels-and-annotations/)."""
    labels = {"kueue.x-k8s.io/queue-name": own.queue, "kueue.x-k8s.io/priority-class": own.queue_priority}
    return {key: value for key, value in labels.items() if value is not None}


def _volume(own: KubernetesConfig, plan: Plan, name: str) -> tuple[dict[str, Any], Claim | None]:
    """Return the source of the volume that the pods mount, and the claim that has to be made for it."""
    if own.host_path:
        return {"hostPath": {"path": own.host_path, "type": "Directory"}}, None
    if own.nfs:
        server, _, path = own.nfs.partition(":")
        return {"nfs": {"server": server, "path": path}}, None
    if own.claim:
        return {"persistentVolumeClaim": {"claimName": own.claim}}, None
    size = own.storage_size or f"{max(1, math.ceil(DISK_MARGIN * plan.disk_gb * 1e9 / 2**30))}Gi"
    claim = Claim(name=f"{name}-run", size=size, storage_class=own.storage_class)
    return {"persistentVolumeClaim": {"claimName": claim.name}}, claim
