"""Checks of the volumes of a manifest: /dev/shm, and where checkpoints go."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fullft_cluster.lint.manifest import Tree
from fullft_cluster.lint.nouns import Hit, quoted
from fullft_cluster.lint.workload import Container, Pods, Workload

_CHECKPOINT = re.compile(r"checkpoint|ckpt", re.IGNORECASE)
_OUTPUT = re.compile(r"--(?:output[_-]dir|save[_-]dir|checkpoint[a-z_-]*|ckpt[a-z_-]*|save)[= ](/\S+)")


def _volume(pods: Pods, name: str) -> Tree | None:
    return next((volume for volume in pods.spec.list("volumes") if volume.value("name") == name), None)


def small_shared_memory(job: Workload) -> Iterator[Hit]:
    """Yield containers with several GPUs whose /dev/shm is the runtime's 64 MiB."""
    for pods in job.pods:
        for container in pods.containers:
            if container.gpus < 2 or container.initial:
                continue
            mounts = [mount for mount in container.tree.list("volumeMounts") if _path(mount) == "/dev/shm"]
            volume = _volume(pods, mounts[0].value("name")) if mounts else None
            host_ipc = pods.spec.get("hostIPC")
            empty = volume.get("emptyDir") if volume else None
            if host_ipc and host_ipc.true:
                continue
            if not mounts:
                yield Hit(
                    container.tree.line, f"container {quoted(container.name)}: {container.gpus} GPUs, no /dev/shm"
                )
            elif empty and empty.value("medium") != "Memory":
                yield Hit(empty.line, "the volume at /dev/shm is on disk, not in memory")


def _path(mount: Tree) -> str:
    return mount.value("mountPath").rstrip("/")


def checkpoints_in_empty_dir(job: Workload) -> Iterator[Hit]:
    """Yield mounts of an emptyDir that checkpoints are written to, by their names or by the command's options."""
    for pods in job.pods if job.is_batch or job.kind == "Pod" else ():
        for container in pods.containers:
            yield from _empty_mounts(pods, container)


def _empty_mounts(pods: Pods, container: Container) -> Iterator[Hit]:
    outputs = _OUTPUT.findall(container.command)[:20]
    mounts = container.tree.list("volumeMounts")
    for mount in mounts:
        volume = _volume(pods, mount.value("name"))
        if volume is None or volume.get("emptyDir") is None:
            continue
        path = _path(mount)
        named = _CHECKPOINT.search(path) or _CHECKPOINT.search(mount.value("name"))
        if named or any(_holder(mounts, output) == path for output in outputs):
            yield Hit(mount.line, f"checkpoints go to {quoted(path)}, an emptyDir")


def _holder(mounts: list[Tree], output: str) -> str:
    """Return the deepest mount that a path lies in, or ''."""
    paths = [_path(mount) for mount in mounts]
    return max((path for path in paths if path and f"{output}/".startswith(f"{path}/")), key=len, default="")
