"""The noun KubernetesJob: every value of the manifests, computed from Config, Plan and Cluster. Pure."""

from __future__ import annotations

import math
import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fullft_cluster import __version__
from fullft_cluster.config import Config, KubernetesConfig, KubernetesKind
from fullft_cluster.errors import UsageError
from fullft_cluster.hardware import CPU, Cluster
from fullft_cluster.kubernetes_check import RESERVED, SECRETS, kubernetes_problems
from fullft_cluster.kubernetes_names import check_object_name, is_label_value, toleration
from fullft_cluster.plan import Frozen, Plan
from fullft_cluster.units import duration_seconds

CPU_SHARE = 0.9
"""Of a node's CPUs that pods may ask for: the kubelet and daemon sets keep the rest. Default."""

DISK_MARGIN = 1.2
"""Of the run's own claim over the plan's estimate, for prepared data and logs. Default."""

FILES = "/etc/fullft-cluster"
"""Where the ConfigMap with config.yaml, plan.json and deepspeed.json is mounted."""

PORT = 29500
"""Of the rendezvous. Each pod has an address of its own, so two jobs do not meet."""

EGRESS_PORTS = (53, 443, 5353, 6443)
"""DNS, HTTPS (the hub), the pods of OpenShift's DNS, the API server: a policy sees the port that a Service leads to.

A volume (NFS, CSI) is mounted by the node, not by the pod."""

EXIT_STOPPED = 75
EXIT_TERMINATED = 128 + 15
"""Of a pod that was told to leave: a PyTorchJob makes a pod anew only after 128 and above, as after a signal."""

MAX_RESTARTS = 1000
"""Of the controllers: a far bound. The budget of failures is the supervisor's, who tells them from preemptions."""

SUPERVISOR_MEMORY = "512Mi"
"""Of the supervisor's pod: it imports neither torch nor transformers, and holds 60 MiB. Default."""

DEADLINE_FACTOR = 3.0
"""Of the active deadline over the longest of the estimate: what takes that long stands still. Default."""

DEADLINE_SECONDS = 24 * 3600
"""The least active deadline: data, images and restarts of a short run. Default."""


class Gang(NamedTuple):
    """How a scheduler is told that pods belong together, beside the PodGroup of the run's name."""

    api_version: str
    scheduler: str
    label: str | None = None
    annotation: str | None = None
    has_queue: bool = False
    """Whether a PodGroup names a queue and a priority."""

    def labels(self, name: str) -> dict[str, str]:
        """Return the labels of the pods."""
        return {self.label: name} if self.label else {}

    def annotations(self, name: str) -> dict[str, str]:
        """Return the annotations of the pods."""
        return {self.annotation: name} if self.annotation else {}


GANGS = {
    # https://volcano.sh/en/docs/podgroup/ - without the annotation Volcano makes a group of one pod for each owner.
    "volcano": Gang(
        "scheduling.volcano.sh/v1beta1", "volcano", annotation="scheduling.k8s.io/group-name", has_queue=True
    ),
    # https://github.com/kubernetes-sigs/scheduler-plugins/tree/master/pkg/coscheduling - the name is of its Helm chart.
    "coscheduling": Gang(
        "scheduling.x-k8s.io/v1alpha1", "scheduler-plugins-scheduler", label="scheduling.x-k8s.io/pod-group"
    ),
}

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


class Pod(Frozen, frozen=True):
    """What the pods are told. Parts that Kubernetes takes as they are (resources, env) are in its own form."""

    image: str
    image_pull_policy: str
    image_pull_secrets: tuple[str, ...]
    python: str
    priority_class: str | None
    node_selector: dict[str, str]
    tolerations: tuple[dict[str, Any], ...]
    prepare_tolerations: tuple[dict[str, Any], ...]
    topology_key: str | None
    resources: dict[str, Any]
    prepare_resources: dict[str, Any]
    shm_size: str
    capabilities: tuple[str, ...]
    run_as_user: int
    run_as_group: int
    supervisor_resources: dict[str, Any]
    env: tuple[dict[str, Any], ...]
    scheduler_name: str | None
    gang_labels: dict[str, str]
    gang_annotations: dict[str, str]
    stopped_exit: int
    """Exit code of a pod that was told to leave."""
    node_rank: str
    """The argument that names a pod's rank, by a variable of its environment."""
    grace_seconds: int


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
        pod=_pod(
            own, plan, name, _resources(own, cluster, plan, memory_gib), _environment(own, cluster, plan, mount_path)
        ),
        nodes=plan.nodes,
        gpus_per_node=plan.gpus_per_node,
        pod_group=_pod_group(own),
        egress_ports=tuple(sorted({*EGRESS_PORTS, *own.egress_ports})),
        active_deadline_seconds=_active_deadline(own, plan),
        starts_suspended=own.queue is None,
    )


def _pod(own: KubernetesConfig, plan: Plan, name: str, resources: dict[str, Any], env: list[dict[str, Any]]) -> Pod:
    return Pod(
        image=str(own.image),
        image_pull_policy=own.image_pull_policy,
        image_pull_secrets=own.image_pull_secrets,
        python=literal(own.python),
        priority_class=own.priority_class,
        node_selector=own.node_selector,
        tolerations=_tolerations(own, on_gpus=plan.gpu != CPU),
        prepare_tolerations=_tolerations(own, on_gpus=False),
        topology_key=own.topology_key if plan.nodes > 1 else None,
        resources=resources,
        prepare_resources=_both(own.prepare_cpus, own.prepare_memory),
        shm_size=own.shm_size,
        capabilities=("IPC_LOCK",) if own.rdma_resource else (),
        run_as_user=own.run_as_user,
        run_as_group=own.run_as_group,
        supervisor_resources=_both("250m", SUPERVISOR_MEMORY),
        env=tuple(env),
        scheduler_name=own.scheduler_name or (GANGS[own.gang].scheduler if own.gang else None),
        gang_labels=GANGS[own.gang].labels(name) if own.gang else {},
        gang_annotations=GANGS[own.gang].annotations(name) if own.gang else {},
        stopped_exit=EXIT_TERMINATED if own.kind == "pytorchjob" else EXIT_STOPPED,
        node_rank="$(PET_NODE_RANK)" if own.kind == "pytorchjob" else "$(NODE_RANK)",
        grace_seconds=plan.signal_lead_seconds,
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


def literal(text: str) -> str:
    """Return text that Kubernetes takes as it is in `args` and `env`: there `$(NAME)` is expanded, and `$$` is `$`.

    https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/ - without it a
    path or a value that holds `$(HF_TOKEN)` would be given the secret.
    """
    return text.replace("$", "$$")


def kubernetes_notes(config: Config, cluster: Cluster, nodes: int) -> list[str]:
    """Return what the user should know: what the pods may not see of what is named here."""
    own, notes = config.kubernetes, []
    mount = PurePosixPath(own.mount_path or config.output.runs_dir)
    paths = {"data.train": config.data.train, "data.cache_dir": config.data.cache_dir}
    paths |= {key: getattr(config, key) for key in ("weights", "model") if str(getattr(config, key)).startswith("/")}
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


def _tolerations(own: KubernetesConfig, *, on_gpus: bool) -> tuple[dict[str, Any], ...]:
    """Return the user's, the usual one for GPU nodes, and short ones for nodes that are lost."""
    found: list[dict[str, Any]] = [made for taint in own.tolerations if (made := toleration(taint))]
    if on_gpus:
        found.append({"key": own.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    for condition in ("not-ready", "unreachable"):
        found.append(
            {
                "key": f"node.kubernetes.io/{condition}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": own.unreachable_seconds,
            }
        )
    return tuple(found)


def _resources(own: KubernetesConfig, cluster: Cluster, plan: Plan, memory_gib: int) -> dict[str, Any]:
    """Return requests and limits of a worker pod. No limit on CPUs: it would only throttle.

    Memory is what it asks for and no more, and /dev/shm counts against it
    (https://kubernetes.io/docs/concepts/storage/volumes/#emptydir).
    """
    share = min(1.0, plan.gpus_per_node / cluster.gpus_per_node)
    cpus = own.cpus or max(1, math.floor(CPU_SHARE * share * cluster.cpus_per_node))
    resources = _both(cpus, own.memory or _memory(memory_gib, own.shm_size, plan))
    devices = {} if plan.gpu == CPU else {own.gpu_resource: str(plan.gpus_per_node)}
    if own.rdma_resource:
        devices[own.rdma_resource] = str(own.rdma_count)
    return {name: {**amounts, **devices} for name, amounts in resources.items()}


def _both(cpus: int | str, memory: str) -> dict[str, dict[str, str]]:
    return {"requests": {"cpu": str(cpus), "memory": memory}, "limits": {"memory": memory}}


def _memory(gib: int, shm_size: str, plan: Plan) -> str:
    """Return the sum of both, as a quantity in GiB, rounded up, if the node has so much."""
    match = re.fullmatch(r"([0-9.]+)([KMGTPEk]?)(i?)", shm_size)
    if match is None:  # is_quantity was asked before
        raise ValueError(shm_size)
    power = " kMGTPE".index(match[2].replace("K", "k") or " ")
    size = float(match[1]) * (1024 if match[3] else 1000) ** power
    most = math.floor(plan.memory.host_capacity_gib_per_node)
    return f"{max(gib, min(gib + math.ceil(size / 2**30), most))}Gi"


def _environment(own: KubernetesConfig, cluster: Cluster, plan: Plan, mount_path: str) -> list[dict[str, Any]]:
    """Return the environment of the containers: ours, the profile's over it, the job's over that; secrets by name."""
    values = {"HOME": "/tmp", "HF_HOME": f"{mount_path}/.huggingface", **_nccl(own, plan), **cluster.env, **own.env}
    values = {name: value for name, value in values.items() if name not in RESERVED}
    env: list[dict[str, Any]] = [{"name": name, "value": literal(value)} for name, value in sorted(values.items())]
    env += [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": variable}}}
        for key, variable in SECRETS.items()
        if (secret := getattr(own, key)) is not None
    ]
    return env


def _nccl(own: KubernetesConfig, plan: Plan) -> dict[str, str]:
    """Return NCCL's environment, pinned to one network, so that a fall-back to another fails instead of being slow.

    https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-net; for EFA the name of the plugin's
    network depends on its version, so only libfabric's provider is pinned (https://github.com/aws/aws-ofi-nccl).
    """
    if plan.gpu == CPU:
        return {}
    found = {"NCCL_DEBUG": "WARN"}
    if plan.nodes == 1:
        return found
    if own.rdma_resource is None:
        return {**found, "NCCL_NET": "Socket"}
    if own.rdma_resource.endswith("/efa"):
        return {**found, "FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1"}
    return {**found, "NCCL_NET": "IB"}
