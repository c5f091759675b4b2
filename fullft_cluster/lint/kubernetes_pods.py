"""Rules about the pods of a manifest: devices, memory, how they end, what they may do, what they give away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from fullft_cluster.lint.kubernetes_volumes import checkpoints_in_empty_dir, small_shared_memory
from fullft_cluster.lint.nouns import Hit, Rule, quoted
from fullft_cluster.lint.secret_words import is_secret, token_form
from fullft_cluster.lint.workload import GPU_RESOURCE, Container, Workload

_DOCS = "https://kubernetes.io/docs"
DEFAULT_GRACE_SECONDS = 30
_FABRIC_RESOURCE = re.compile(
    r"rdma|efa|hostdev|infiniband|(?:^|[/_-])ib(?:[/_-]|$)|roce|sriov|mlnx|gpudirect|/hca", re.I
)
_FABRIC_NETWORK = frozenset(("k8s.v1.cni.cncf.io/networks", "networking.gke.io/interfaces"))


def _grace(job: Workload) -> Iterator[Hit]:
    for pods in job.training_pods():
        given = pods.spec.get("terminationGracePeriodSeconds")
        if given is None:
            line = pods.spec.line
            yield Hit(line, f"no terminationGracePeriodSeconds in {quoted(pods.role)}: {DEFAULT_GRACE_SECONDS} s")
        elif given.number is not None and given.number <= DEFAULT_GRACE_SECONDS:
            yield Hit(given.line, f"terminationGracePeriodSeconds of {quoted(pods.role)} is {given.number} s")


def _unreachable(job: Workload) -> Iterator[Hit]:
    for pods in job.training_pods():
        tolerations = [
            toleration
            for toleration in pods.spec.list("tolerations")
            if toleration.value("effect") in ("", "NoExecute")
            and toleration.value("key") in ("", "node.kubernetes.io/unreachable")
        ]
        forever = [toleration for toleration in tolerations if toleration.get("tolerationSeconds") is None]
        if forever:
            yield Hit(forever[0].line, f"{quoted(pods.role)} tolerates an unreachable node for ever")
        elif not tolerations:
            yield Hit(pods.spec.line, f"{quoted(pods.role)} stays on an unreachable node for 300 s (the default)")


def _gpu_limits(job: Workload) -> Iterator[Hit]:
    for container in _containers(job):
        limits = container.resources("limits")
        for name, (amount, line) in container.resources("requests").items():
            if GPU_RESOURCE.match(name) and name not in limits:
                yield Hit(line, f"{quoted(name)} is requested without a limit")
            elif GPU_RESOURCE.match(name) and limits[name][0] != amount:
                yield Hit(line, f"{quoted(name)}: the request differs from the limit of line {limits[name][1]}")


def _gpu_not_requested(job: Workload) -> Iterator[Hit]:
    for pods in job.pods if job.is_batch and "TrainingRuntime" not in job.kind else ():
        if pods.gpus or pods.spec.get("resourceClaims"):
            continue
        for container in pods.containers:
            for name, value, line in container.environment():
                visible = name in ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
                if visible and value not in ("", "-1", "none", "void", "NoDevFiles"):
                    yield Hit(line, f"{name} without a GPU among the limits")
        selector = pods.spec.get("nodeSelector")
        for name, _, line in selector.items() if selector else ():
            if name.startswith("nvidia.com/gpu"):
                yield Hit(line, f"a node with {quoted(name)} is asked for, and no GPU")


def _fabric(job: Workload) -> Iterator[Hit]:
    for pods in job.training_pods():
        networks = any(pods.template.get("metadata", "annotations", name) for name in _FABRIC_NETWORK)
        shared = pods.spec.get("hostNetwork")
        if networks or pods.spec.get("resourceClaims") or (shared and shared.true):
            continue
        for container in pods.containers:
            named = [*container.resources("limits"), *container.resources("requests")]
            if container.gpus and not any(_FABRIC_RESOURCE.search(name) for name in named):
                yield from _fabric_names(container)


def _fabric_names(container: Container) -> Iterator[Hit]:
    for name, value, line in container.environment():
        wanted = (
            (name in ("NCCL_IB_HCA", "NCCL_IB_GID_INDEX", "NCCL_IB_TC", "FI_EFA_USE_DEVICE_RDMA") and value != "")
            or (name == "NCCL_NET" and value.upper() in ("IB", "AWS LIBFABRIC", "OFI"))
            or (name == "FI_PROVIDER" and value.lower() == "efa")
            or (name == "NCCL_IB_DISABLE" and value == "0")
        )
        if wanted:
            yield Hit(line, f"{name} names a fabric that no resource of the container asks for")
            return


def _privileged(job: Workload) -> Iterator[Hit]:
    for container in _containers(job):
        found = container.tree.get("securityContext", "privileged")
        if found and found.true:
            yield Hit(found.line, f"container {quoted(container.name)} is privileged")


def _root(job: Workload) -> Iterator[Hit]:
    for pods in job.pods:
        for owner in (pods.spec, *(container.tree for container in pods.containers)):
            user = owner.get("securityContext", "runAsUser")
            allowed = owner.get("securityContext", "runAsNonRoot")
            if user and user.number == 0:
                yield Hit(user.line, "runAsUser is 0")
            elif allowed and allowed.text.lower() == "false":
                yield Hit(allowed.line, "runAsNonRoot is false")


def _image(job: Workload) -> Iterator[Hit]:
    images = [container.tree.get("image") for container in _containers(job)]
    if job.kind == "TrainJob":
        images.append(job.tree.get("spec", "trainer", "image"))
    for image in images:
        if image is None or not image.text or "@" in image.text or "$" in image.text or "{{" in image.text:
            continue
        tag = image.text.rsplit("/", 1)[-1].partition(":")[2]
        if tag in ("", "latest"):
            yield Hit(image.line, "the image has " + ("the tag latest" if tag else "no tag"))


def _secret(job: Workload) -> Iterator[Hit]:
    containers = list(_containers(job))
    trainer = job.tree.get("spec", "trainer") if job.kind == "TrainJob" else None
    containers += [Container(trainer)] if trainer else []
    for container in containers:
        for name, value, line in container.environment():
            if is_secret(name, value):
                yield Hit(line, f"the value of {quoted(name)} is written out")
        for part in (*container.tree.list("command"), *container.tree.list("args")):
            found = token_form(part.text)
            if found:
                yield Hit(part.line, f"{found} is written out in the command")
    if job.kind == "ConfigMap":
        data = job.tree.get("data")
        for name, entry, line in data.items() if data else ():
            if is_secret(name, entry.text):
                yield Hit(line, f"the value of {quoted(name)} is written out in a ConfigMap")


def _host_port(job: Workload) -> Iterator[Hit]:
    for pods in job.pods:
        shared = pods.spec.get("hostNetwork")
        if not (shared and shared.true and (job.is_batch or pods.count > 1)):
            continue
        for container in pods.containers:
            ports = [port.key_line("containerPort") for port in container.tree.list("ports")]
            ports += [
                line for name, value, line in container.environment() if name == "MASTER_PORT" and value.isdigit()
            ]
            words = container.command.split()
            fixed = any(re.search(r"port=\d", word) for word in words) or any(
                option.startswith("--") and "port" in option and value.isdigit() for option, value in pairwise(words)
            )
            ports += [container.command_line()] if fixed else []
            if ports or job.is_pytorchjob:
                yield Hit(
                    ports[0] if ports else shared.line, f"{quoted(pods.role)} listens on a fixed port of its node"
                )
                break


def _containers(job: Workload) -> Iterator[Container]:
    for pods in job.pods:
        yield from pods.containers


RULES: tuple[Rule[Workload], ...] = (
    Rule(
        "k8s-shared-memory",
        "/dev/shm is 64 MiB in a container: NCCL's buffers between GPUs of a pod and data loaders' batches do not "
        "fit, and the processes die of a bus error or `No space left on device`.",
        "Mount an emptyDir with medium: Memory at /dev/shm.",
        "https://github.com/NVIDIA/nccl/issues/525",
        small_shared_memory,
    ),
    Rule(
        "k8s-checkpoints-in-emptydir",
        "An emptyDir goes with its pod: after an eviction or on another node there is nothing to resume from.",
        "Put checkpoints on a PersistentVolumeClaim that every node can mount (ReadWriteMany).",
        f"{_DOCS}/concepts/storage/volumes/#emptydir",
        checkpoints_in_empty_dir,
    ),
    Rule(
        "k8s-grace-period",
        "At eviction, drain and preemption the pod is killed after the grace period, whether or not its checkpoint "
        "is written: 65B take minutes.",
        "Set terminationGracePeriodSeconds to a step + checkpoint bytes / write bandwidth + a margin (and "
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT with torchrun).",
        "https://github.com/kubeflow/trainer/issues/3285",
        _grace,
    ),
    Rule(
        "k8s-unreachable-node",
        "A dead node's pods are only evicted after their toleration, and then stay Terminating until someone deletes "
        "them or the node: the job waits, and holds its GPUs.",
        "Tolerate node.kubernetes.io/unreachable and not-ready with effect NoExecute and tolerationSeconds of 30 or "
        "so, and watch for pods that stay Terminating.",
        f"{_DOCS}/concepts/scheduling-eviction/taint-and-toleration/#taint-based-evictions",
        _unreachable,
    ),
    Rule(
        "k8s-gpu-limits",
        "GPUs count as limits: a request without a limit, or unequal to it, is refused by the API server.",
        "Give the number under limits; requests follow.",
        f"{_DOCS}/tasks/manage-gpus/scheduling-gpus/",
        _gpu_limits,
    ),
    Rule(
        "k8s-gpu-not-requested",
        "A pod without a GPU limit is placed on any node, and gets no GPU, or those of other pods where the runtime "
        "shows all of them.",
        "Add resources.limits with nvidia.com/gpu, and let the device plugin set what is visible.",
        f"{_DOCS}/tasks/manage-gpus/scheduling-gpus/",
        _gpu_not_requested,
    ),
    Rule(
        "k8s-fabric-not-requested",
        "Without the device in the pod NCCL falls back to TCP in silence, at a fraction of the speed.",
        "Request it (rdma/..., vpc.amazonaws.com/efa, nvidia.com/hostdev), and set NCCL_NET so that a fall-back fails.",
        "https://github.com/aws/sagemaker-hyperpod-cli/issues/306",
        _fabric,
    ),
    Rule(
        "k8s-privileged",
        "It is root on the node with all its devices, other jobs' GPUs among them; namespaces with Pod Security "
        "refuse it.",
        "Drop it: GPUs come by limits, RDMA needs its resource and the capability IPC_LOCK.",
        f"{_DOCS}/concepts/security/pod-security-standards/",
        _privileged,
    ),
    Rule(
        "k8s-root",
        "Files on the shared volume belong to root, and namespaces with the restricted Pod Security standard refuse "
        "it.",
        "Set runAsNonRoot: true with a runAsUser and fsGroup of your own.",
        f"{_DOCS}/concepts/security/pod-security-standards/",
        _root,
    ),
    Rule(
        "k8s-image-tag",
        "After a restart some pods may run another build than the others, and a resumed run another than it began "
        "with.",
        "Name a version, or better a digest: image@sha256:...",
        f"{_DOCS}/concepts/containers/images/",
        _image,
    ),
    Rule(
        "k8s-secret-value",
        "Whoever may read the object reads it, and it lands in repositories, logs and `kubectl describe`.",
        "Use valueFrom.secretKeyRef, and revoke this one.",
        f"{_DOCS}/concepts/configuration/secret/",
        _secret,
    ),
    Rule(
        "k8s-host-port",
        "With hostNetwork the port is the node's: a second pod on that node cannot bind it, or two jobs meet on it.",
        "Leave hostNetwork out, or have the job choose the port.",
        f"{_DOCS}/reference/kubernetes-api/workload-resources/pod-v1/",
        _host_port,
    ),
)
