"""The objects of a run: what they are called, how they are found, and in which order they are made and removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import yaml

from fullft_cluster.kubernetes_api import Json, object_path
from fullft_cluster.kubernetes_api.kinds import Kind, kind_of

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MANAGED = "app.kubernetes.io/managed-by=fullft-cluster"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
"""Label: which part of the run an object is (prepare, supervisor, worker, run)."""
REMOVABLE = (
    # The training first, so that nothing makes its pods anew; the claim, which holds the checkpoints, not at all.
    *("PyTorchJob", "TrainJob", "JobSet", "Job", "TrainingRuntime", "PodGroup", "SchedulingPodGroup", "Service"),
    *("NetworkPolicy", "RoleBinding", "Role", "ServiceAccount", "ConfigMap"),
)
"""The kinds of a run's objects in the order in which they are deleted."""


@dataclass(frozen=True)
class Names:
    """What the objects of a run are called."""

    run: str

    @property
    def files(self) -> str:
        """Return the ConfigMap with the files of the run as submitted."""
        return f"{self.run}-files"

    @property
    def state(self) -> str:
        """Return the ConfigMap in which the supervisor publishes the run's state, and in which it is asked."""
        return f"{self.run}-state"

    @property
    def prepare(self) -> str:
        """Return the Job that prepares the data."""
        return f"{self.run}-prepare"

    @property
    def supervisor(self) -> str:
        """Return the Job of the supervisor."""
        return f"{self.run}-supervisor"

    @property
    def selector(self) -> str:
        """Return the labels of all objects of the run."""
        return f"{MANAGED},{INSTANCE}={self.run}"


def makers(job: str) -> tuple[str, str]:
    """Return the names of what may make the pods of an object of that name: it, or the Job of a JobSet.

    Their events say why a pod is refused; names that only begin alike are other runs', and the run's other parts.
    """
    return job, f"{job}-node-0"


def documents(texts: Iterable[str]) -> list[Json]:
    """Return the objects of manifests, in their order."""
    return [item for text in texts for item in yaml.load_all(text, Loader=_LOADER) if item]


def path_of(obj: Mapping[str, object]) -> str:
    """Return the path of an object."""
    metadata = obj["metadata"]
    assert isinstance(metadata, Mapping)
    return object_path(kind_of(obj), metadata.get("namespace"), metadata["name"])


def words_of(obj: Mapping[str, object]) -> str:
    """Return an object as kubectl writes it: ``configmaps/x``, ``pytorchjobs.kubeflow.org/x``."""
    metadata = obj["metadata"]
    assert isinstance(metadata, Mapping)
    return f"{kind_of(obj).resource}/{metadata['name']}"


def kinds(objects: Iterable[Mapping[str, object]]) -> list[Kind]:
    """Return the kinds of objects, each once."""
    return list(dict.fromkeys(kind_of(obj) for obj in objects))
