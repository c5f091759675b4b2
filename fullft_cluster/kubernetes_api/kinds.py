"""The kinds of objects that are asked for here: their API group, version, plural, and whether they have a namespace."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote


class Kind(NamedTuple):
    """Where objects of a kind are in the API."""

    group: str
    """Empty for the core group."""
    version: str
    plural: str
    namespaced: bool = True

    @property
    def root(self) -> str:
        """Return the path of the group and version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def api_version(self) -> str:
        """Return it as manifests write it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """Return it as ``kubectl`` writes it: ``pods``, ``pytorchjobs.kubeflow.org``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


KINDS: dict[str, Kind] = {
    "ConfigMap": Kind("", "v1", "configmaps"),
    "Secret": Kind("", "v1", "secrets"),
    "Service": Kind("", "v1", "services"),
    "ServiceAccount": Kind("", "v1", "serviceaccounts"),
    "PersistentVolumeClaim": Kind("", "v1", "persistentvolumeclaims"),
    "Pod": Kind("", "v1", "pods"),
    "Event": Kind("", "v1", "events"),
    "ResourceQuota": Kind("", "v1", "resourcequotas"),
    "Namespace": Kind("", "v1", "namespaces", namespaced=False),
    "Node": Kind("", "v1", "nodes", namespaced=False),
    "Job": Kind("batch", "v1", "jobs"),
    "NetworkPolicy": Kind("networking.k8s.io", "v1", "networkpolicies"),
    "Role": Kind("rbac.authorization.k8s.io", "v1", "roles"),
    "RoleBinding": Kind("rbac.authorization.k8s.io", "v1", "rolebindings"),
    "PriorityClass": Kind("scheduling.k8s.io", "v1", "priorityclasses", namespaced=False),
    "StorageClass": Kind("storage.k8s.io", "v1", "storageclasses", namespaced=False),
    "SelfSubjectAccessReview": Kind("authorization.k8s.io", "v1", "selfsubjectaccessreviews", namespaced=False),
    "SelfSubjectReview": Kind("authentication.k8s.io", "v1", "selfsubjectreviews", namespaced=False),
    "PyTorchJob": Kind("kubeflow.org", "v1", "pytorchjobs"),
    "TrainJob": Kind("trainer.kubeflow.org", "v1alpha1", "trainjobs"),
    "TrainingRuntime": Kind("trainer.kubeflow.org", "v1alpha1", "trainingruntimes"),
    "JobSet": Kind("jobset.x-k8s.io", "v1alpha2", "jobsets"),
    "PodGroup": Kind("scheduling.volcano.sh", "v1beta1", "podgroups"),
    "SchedulingPodGroup": Kind("scheduling.x-k8s.io", "v1alpha1", "podgroups"),  # coscheduling's, of the same kind name
    "Workload": Kind("kueue.x-k8s.io", "v1beta2", "workloads"),
    "LocalQueue": Kind("kueue.x-k8s.io", "v1beta2", "localqueues"),
    "WorkloadPriorityClass": Kind("kueue.x-k8s.io", "v1beta2", "workloadpriorityclasses", namespaced=False),
}

_KUEUE = "https://github.com/kubernetes-sigs/kueue/releases/download/v0.19.2/manifests.yaml"
_JOBSET = "https://github.com/kubernetes-sigs/jobset/releases/download/v0.12.0/manifests.yaml"
INSTALL: dict[str, tuple[str, str]] = {
    "kubeflow.org": (
        "the Kubeflow training-operator",
        'kubectl apply --server-side -k "github.com/kubeflow/training-operator.git/manifests/overlays/standalone'
        '?ref=v1.9.3"',
    ),
    "trainer.kubeflow.org": (
        "the Kubeflow trainer",
        'kubectl apply --server-side -k "https://github.com/kubeflow/trainer.git/manifests/overlays/manager'
        '?ref=v2.3.0"',
    ),
    "jobset.x-k8s.io": ("JobSet", f"kubectl apply --server-side -f {_JOBSET}"),
    "kueue.x-k8s.io": ("Kueue", f"kubectl apply --server-side -f {_KUEUE}"),
    "scheduling.volcano.sh": (
        "Volcano",
        "kubectl apply -f https://raw.githubusercontent.com/volcano-sh/volcano/v1.12.2/installer/volcano-development.yaml",
    ),
    "scheduling.x-k8s.io": (
        "the coscheduling plugin",
        "helm install --repo https://scheduler-plugins.sigs.k8s.io scheduler-plugins scheduler-plugins",
    ),
}
"""API group -> what brings it, and the command that installs that."""


def kind_of(obj: Mapping[str, Any]) -> Kind:
    """Return where an object belongs, by its apiVersion and kind. Raises KeyError for one that is never made here."""
    group, _, version = str(obj["apiVersion"]).rpartition("/")
    known = KINDS[str(obj["kind"])]
    if known.group != group:
        known = next(kind for kind in KINDS.values() if (kind.group, kind.plural) == (group, known.plural))
    return known._replace(version=version)


def object_path(
    kind: str | Kind, namespace: str | None, name: str | None = None, subresource: str | None = None
) -> str:
    """Return the path of objects of a kind, or of one of them.

    ``namespace=None``: of all namespaces, or of a kind that has none.
    """
    where = KINDS[kind] if isinstance(kind, str) else kind
    parts = [where.root]
    if where.namespaced and namespace is not None:
        parts += ["namespaces", quote(namespace, safe="")]
    parts.append(where.plural)
    parts += [quote(part, safe="") for part in (name, subresource) if part is not None]
    return "/".join(parts)


class Place(NamedTuple):
    """What a path names."""

    group: str
    namespace: str | None
    resource: str
    """With its subresource: ``pods/log``."""
    name: str | None

    @property
    def words(self) -> str:
        """Return it as kubectl would: ``pods/x``, ``pytorchjobs.kubeflow.org/x``."""
        resource, slash, sub = self.resource.partition("/")
        named = f"{resource}.{self.group}" if self.group else resource
        return named + (f"/{self.name}" if self.name else "") + (f" ({sub})" if slash else "")


_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"(?:/(?P<resource>[^/]+))?(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?"
)


def place_of(path: str) -> Place:
    """Return what a path of the API names; an empty resource for a path that is none of an object."""
    match = _PATH.fullmatch(path)
    if match is None:
        return Place("", None, "", None)
    sub = f"/{match['sub']}" if match["sub"] else ""
    return Place(match["group"] or "", match["namespace"], f"{match['resource'] or ''}{sub}", match["name"])
