"""The volumes of a pod as directories of this machine, to be bound into its containers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from kube_client import ApiError, Client, Object
from process_kubelet_source import Source, SourceError, quantity

STORAGE_CLASS = "shared"  # the default one: any access mode, any number of nodes
WRITTEN = ("configMap", "secret", "downwardAPI", "projected")


class Volumes:
    """The volumes of one pod. `nfs` holds a directory for each export."""

    def __init__(self, directory: Path, nfs: Path, source: Source) -> None:
        self.directory, self.nfs, self.source = directory, nfs, source
        self.paths: dict[str, Path] = {}
        self._tmpfs: list[Path] = []

    def prepare(self) -> None:
        """Make them all; SourceError at the first that cannot be made yet."""
        for volume in self.source.pod["spec"].get("volumes", []):
            if volume["name"] not in self.paths:
                self.paths[volume["name"]] = self._path(volume)
        if "/dev/shm" not in self.paths:  # what container runtimes give: 64 MiB
            self.paths["/dev/shm"] = self._memory("dev-shm", "64Mi")

    def _path(self, volume: Object) -> Path:
        (kind,) = set(volume) - {"name"}
        own, path = volume[kind], self.directory / volume["name"]
        if kind in WRITTEN:
            return self._written(path, volume)
        if kind == "emptyDir":
            if own.get("medium") == "Memory":
                path = self._memory(volume["name"], own.get("sizeLimit"))
            path.mkdir(parents=True, exist_ok=True)
            return self._owned(path, 0o777)
        if kind == "hostPath":
            return host_path(own)
        if kind == "nfs":
            return export(self.nfs, own["server"], own["path"])
        if kind == "persistentVolumeClaim":
            return self._claimed(own["claimName"])
        raise SourceError(f"volumes of this kind are not known here: {kind}")

    def _written(self, path: Path, volume: Object) -> Path:
        for name, data in self.source.files(volume).items():
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _memory(self, name: str, size: str | None) -> Path:
        path = self.directory / name
        path.mkdir(parents=True, exist_ok=True)
        options = "mode=1777" + (f",size={int(quantity(size))}" if size else "")
        # The kubelet has a mount namespace of its own: nothing of it is seen outside, or is left when it dies.
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
        self._tmpfs.append(path)
        return path

    def _claimed(self, name: str) -> Path:
        client, namespace = self.source.client, self.source.namespace
        claim = client.find(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")
        if claim is None or claim["status"].get("phase") != "Bound":
            raise SourceError(f"claim {namespace}/{name} is not bound")
        volume = client.get(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
        return self._owned(Path(volume["spec"]["hostPath"]["path"]), None)

    def _owned(self, path: Path, mode: int | None) -> Path:
        """Give the volume to the pod's fsGroup, its root alone (fsGroupChangePolicy: OnRootMismatch)."""
        group = self.source.pod["spec"].get("securityContext", {}).get("fsGroup")
        if mode is not None:
            path.chmod(mode)
        if group is not None:
            os.chown(path, -1, group)
            path.chmod(path.stat().st_mode | 0o2770)
        return path

    def close(self) -> None:
        """Free the memory."""
        for path in self._tmpfs:
            subprocess.run(["umount", "--lazy", path], check=False, capture_output=True)


def host_path(own: Object) -> Path:
    """Return the directory of a hostPath volume; SourceError if it has to be there and is not."""
    path, kind = Path(own["path"]), own.get("type", "")
    if kind == "Directory" and not path.is_dir():
        raise SourceError(f"hostPath type check failed: {path} is not a directory")
    if kind == "File" and not path.is_file():
        raise SourceError(f"hostPath type check failed: {path} is not a file")
    if not path.exists():
        path.mkdir(parents=True)
    return path


def export(nfs: Path, server: str, path: str) -> Path:
    """Return the directory that stands for an NFS export; anyone may write there."""
    exported = nfs / server / path.strip("/")
    exported.mkdir(parents=True, exist_ok=True)
    exported.chmod(0o777)
    return exported


def provision(client: Client, directory: Path, claim: Object) -> None:
    """Give a claim of our class a volume: a directory. The controller manager binds the two."""
    meta, spec = claim["metadata"], claim["spec"]
    if claim["status"].get("phase") != "Pending" or spec.get("storageClassName") != STORAGE_CLASS:
        return
    name = f"{meta['namespace']}-{meta['name']}-{meta['uid'][:8]}"
    path = directory / name
    path.mkdir(parents=True, exist_ok=True)
    volume = {
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "storageClassName": STORAGE_CLASS,
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(path)},
            "claimRef": {"namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]},
        },
    }
    status, answer = client.request("POST", "/api/v1/persistentvolumes", volume)
    if status >= 400 and status != 409:
        raise ApiError("POST", "/api/v1/persistentvolumes", status, answer)


def reclaim(client: Client, volume: Object) -> None:
    """Delete a volume whose claim is gone, with its data."""
    own = volume["spec"].get("storageClassName") == STORAGE_CLASS
    if own and volume["status"].get("phase") == "Released" and not volume["metadata"].get("deletionTimestamp"):
        client.request("DELETE", f"/api/v1/persistentvolumes/{volume['metadata']['name']}")
        shutil.rmtree(volume["spec"]["hostPath"]["path"], ignore_errors=True)
