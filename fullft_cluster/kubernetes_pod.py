"""The noun Pod: what the pods of a run are told, whatever kind of job makes them. Pure."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from fullft_cluster.config import KubernetesConfig
from fullft_cluster.hardware import CPU, Cluster
from fullft_cluster.kubernetes_check import RESERVED, SECRETS
from fullft_cluster.kubernetes_names import toleration
from fullft_cluster.plan import Frozen, Plan

CPU_SHARE = 0.9
"""Of a node's CPUs that pods may ask for: the kubelet and daemon sets keep the rest. Default."""

EXIT_STOPPED = 75
EXIT_TERMINATED = 128 + 15
"""Of a pod that was told to leave: a PyTorchJob makes a pod anew only after 128 and above, as after a signal."""

SUPERVISOR_MEMORY = "512Mi"
"""Of the supervisor's pod: it imports neither torch nor transformers, and holds 60 MiB. Default."""


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


def make_pod(
    own: KubernetesConfig, cluster: Cluster, plan: Plan, *, name: str, mount_path: str, memory_gib: int
) -> Pod:
    """Return what the pods of a run of that name are told. ``memory_gib``: what one node's workers need of the host."""
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
        resources=_resources(own, cluster, plan, memory_gib),
        prepare_resources=_both(own.prepare_cpus, own.prepare_memory),
        shm_size=own.shm_size,
        capabilities=("IPC_LOCK",) if own.rdma_resource else (),
        run_as_user=own.run_as_user,
        run_as_group=own.run_as_group,
        supervisor_resources=_both("250m", SUPERVISOR_MEMORY),
        env=tuple(_environment(own, cluster, plan, mount_path)),
        scheduler_name=own.scheduler_name or (GANGS[own.gang].scheduler if own.gang else None),
        gang_labels=GANGS[own.gang].labels(name) if own.gang else {},
        gang_annotations=GANGS[own.gang].annotations(name) if own.gang else {},
        stopped_exit=EXIT_TERMINATED if own.kind == "pytorchjob" else EXIT_STOPPED,
        node_rank="$(PET_NODE_RANK)" if own.kind == "pytorchjob" else "$(NODE_RANK)",
        grace_seconds=plan.signal_lead_seconds,
    )


def literal(text: str) -> str:
    """Return text that Kubernetes takes as it is in `args` and `env`: there `$(NAME)` is expanded, and `$$` is `$`.

    https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/ - without it a
    path or a value that holds `$(HF_TOKEN)` would be given the secret.
    """
    return text.replace("$", "$$")


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
