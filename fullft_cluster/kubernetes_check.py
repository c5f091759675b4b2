"""Every problem of the section `kubernetes` of a configuration, before an API server is asked. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fullft_cluster.config import KubernetesConfig
from fullft_cluster.environment import environment_problems
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.hardware import Cluster
from fullft_cluster.kubernetes_names import (
    image_problem,
    is_key,
    is_label_name,
    is_label_value,
    is_quantity,
    is_subdomain,
    label_problems,
    toleration,
)
from fullft_cluster.quoting import check_text
from fullft_cluster.units import duration_seconds

SECRETS = {"hf_token_secret": "HF_TOKEN", "wandb_secret": "WANDB_API_KEY"}
"""Key of the section -> the variable, which is also the key in the Secret."""

RESERVED = frozenset(
    (
        "MASTER_ADDR",
        "MASTER_PORT",
        "NODE_RANK",
        "NODE_NAME",
        "RANK",
        "WORLD_SIZE",
        "POD_NAME",
        "POD_UID",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
    )
)
"""Variables by which the processes find each other: the manifests and the node agent set them."""

_OBJECTS = ("claim", "storage_class", "service_account", "priority_class", "scheduler_name", "volcano_queue", *SECRETS)
_NFS = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9.]*[A-Za-z0-9])?:/.*")


def kubernetes_problems(own: KubernetesConfig, cluster: Cluster, run_dir: Path, mount_path: str) -> Iterator[Problem]:
    """Yield what is wrong with the section."""
    if problem := image_problem(own.image):
        yield problem
    if not is_label_name(own.namespace):
        yield _name("namespace", own.namespace)
    for key in _OBJECTS:
        value = getattr(own, key)
        if value is not None and not is_subdomain(value):
            yield _name(key, value)
    for secret in own.image_pull_secrets:
        if not is_subdomain(secret):
            yield _name("image_pull_secrets", secret)
    for key in ("queue", "queue_priority"):  # names of objects, and values of labels
        value = getattr(own, key)
        if value is not None and not (is_subdomain(value) and is_label_value(value)):
            yield _name(key, value)
    for key in ("gpu_resource", "rdma_resource", "topology_key"):
        value = getattr(own, key)
        if value is not None and not is_key(value):
            fix = "Write it as Kubernetes does: nvidia.com/gpu."
            yield Problem(f"kubernetes.{key}", f"{value[:80]!r} is not a qualified name", fix)
    yield from _gang(own)
    yield from _deadline(own)
    yield from label_problems(own.node_selector, "kubernetes.node_selector")
    yield from _amounts(own)
    yield from _volumes(own, run_dir, mount_path)
    yield from _environment(own, cluster)


def _gang(own: KubernetesConfig) -> Iterator[Problem]:
    if own.gang and own.queue:
        what = f"{own.gang} and Kueue (kubernetes.queue) would both hold the pods back until all can start"
        yield Problem("kubernetes.gang", what, "Keep one of them.")
    if own.volcano_queue is not None and own.gang != "volcano":
        what = f"{own.volcano_queue[:80]!r} is a queue of Volcano, which is not asked to schedule"
        yield Problem("kubernetes.volcano_queue", what, "Add kubernetes.gang: volcano, or write kubernetes.queue.")


def _deadline(own: KubernetesConfig) -> Iterator[Problem]:
    if own.active_deadline in (None, "none"):
        return
    what = f"{str(own.active_deadline)[:80]!r} is no time in which a run ends (a minute to 68 years)"
    try:
        seconds = duration_seconds(str(own.active_deadline))
    except ValueError:
        seconds = 0.0
    if not 60 <= seconds < 2**31:
        yield Problem("kubernetes.active_deadline", what, "Write 7d, 36h, or none.")


def _name(key: str, value: str) -> Problem:
    what = f"{value[:80]!r} is not the name of an object (DNS-1123: lower-case letters, digits, '-' and '.')"
    return Problem(f"kubernetes.{key}", what, "Write the name as `kubectl get` shows it.")


def _amounts(own: KubernetesConfig) -> Iterator[Problem]:
    for key in ("storage_size", "memory", "shm_size", "prepare_memory"):
        value = getattr(own, key)
        if value is not None and not is_quantity(value):
            yield Problem(f"kubernetes.{key}", f"{value[:80]!r} is not an amount", "Write for example 64Gi.")
    for taint in own.tolerations:
        if toleration(taint) is None:
            fix = "Write key=value:NoSchedule, or key:NoExecute for any value, as `kubectl taint` does."
            yield Problem("kubernetes.tolerations", f"{taint[:80]!r} is not a taint", fix)


def _volumes(own: KubernetesConfig, run_dir: Path, mount_path: str) -> Iterator[Problem]:
    given = [key for key in ("claim", "host_path", "nfs") if getattr(own, key) is not None]
    if len(given) > 1:
        what = f"{' and '.join(given)} are given, and the run directory is on one volume"
        yield Problem("kubernetes", what, "Keep one of them.")
    if given and (own.storage_size or own.storage_class):
        what = f"storage_size and storage_class are of the run's own claim, and {given[0]} is given"
        yield Problem("kubernetes", what, "Leave them out.")
    if own.host_path is not None and (not own.host_path.startswith("/") or ".." in Path(own.host_path).parts):
        yield Problem("kubernetes.host_path", f"{own.host_path!r} is not an absolute path", "Write /shared/runs.")
    if own.nfs is not None and (not _NFS.fullmatch(own.nfs) or ".." in Path(own.nfs).parts):
        yield Problem("kubernetes.nfs", f"{own.nfs!r} is not server:/path", "Write nfs.example.org:/export/runs.")
    if not mount_path.startswith("/") or ":" in mount_path or mount_path == "/":
        what = f"{mount_path!r} is no place to mount a volume: absolute, not / itself, and without ':'"
        yield Problem("kubernetes.mount_path", what, "Write kubernetes.mount_path: /shared/runs.")
    elif not run_dir.is_relative_to(mount_path):
        what = f"the run directory {run_dir} is not below {mount_path}: it would be lost with the pod"
        yield Problem("kubernetes.mount_path", what, f"Write --runs-dir below {mount_path}.")
    for key in ("python", "host_path", "nfs", "mount_path"):
        try:
            check_text(getattr(own, key) or "", f"kubernetes.{key}")
        except UsageError as error:
            yield from error.problems


def _environment(own: KubernetesConfig, cluster: Cluster) -> Iterator[Problem]:
    advice = "Take it out, and put it into a Secret: kubernetes.hf_token_secret or wandb_secret names it."
    for env, where in ((own.env, "kubernetes.env"), (cluster.env, f"cluster profile {cluster.name}: env")):
        yield from environment_problems(env, where, advice)
        for name in sorted(RESERVED & set(env)):
            yield Problem(f"{where}.{name}", "is set by the manifests and the node agent", "Take it out.")
