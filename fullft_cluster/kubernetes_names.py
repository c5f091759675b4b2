"""What Kubernetes takes for a name, a label, a quantity, an image; and what the pods add to a job's name.

Rules: https://kubernetes.io/docs/concepts/overview/working-with-objects/names/ and .../labels/, quantities:
https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/, images:
https://github.com/distribution/reference/blob/main/reference.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fullft_cluster.config import KubernetesKind
from fullft_cluster.errors import Problem, UsageError

LONGEST = 63
"""Characters of a DNS label: a pod's host name, a Service, and the value of a label."""

_RANDOM = len("-xxxxx")
_LABEL_1035 = re.compile(r"[a-z](?:[-a-z0-9]*[a-z0-9])?")
_LABEL_1123 = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_QUANTITY = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:[KMGTPE]i|[kMGTPE])?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9.]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_IMAGE = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?P<tag>:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?P<digest>@sha256:[0-9a-f]{{64}})?"
)
_TAINT = re.compile(r"(?P<key>[^=:]+)(?:=(?P<value>[^=:]*))?:(?P<effect>NoSchedule|PreferNoSchedule|NoExecute)")


def longest_name(kind: KubernetesKind, nodes: int) -> int:
    """Return how long a job's name may be, so that the names that are made of it stay within `LONGEST` characters.

    Pods: ``NAME-worker-N`` of a PyTorchJob (and a Service each), ``NAME-node-0-N-xxxxx`` of JobSet and TrainJob,
    ``NAME-N-xxxxx`` of a Job; ``NAME-supervisor-xxxxx`` in any case, which is longer than that of the preparation.
    """
    digits = len(str(nodes - 1))
    added = {
        "pytorchjob": len("-worker-") + digits,
        "trainjob": len("-node-0-") + digits + _RANDOM,
        "jobset": len("-node-0-") + digits + _RANDOM,
        "job": len("-") + digits + _RANDOM,
    }[kind]
    return LONGEST - max(added, len("-supervisor") + _RANDOM)


def object_name(text: str, longest: int) -> str:
    """Return the nearest name of an object: a DNS-1035 label, as PyTorchJob and TrainJob ask for, of such a length."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name[:1].isalpha():
        name = f"run-{name}"
    return name[:longest].strip("-")


def check_object_name(name: str, kind: KubernetesKind, nodes: int) -> str:
    """Return a run's name if it may be a job's. Raises UsageError."""
    longest = longest_name(kind, nodes)
    fix = f"Write for example --name {object_name(name, longest)}."
    if not _LABEL_1035.fullmatch(name):
        what = f"{name!r} is not a name in Kubernetes (DNS-1035: lower-case letters, digits and '-', a letter first)"
        raise UsageError(Problem("--name", what, fix))
    if len(name) > longest:
        what = f"{name!r} has {len(name)} characters, and {longest} are left of {LONGEST} by what a {kind}'s pods add"
        raise UsageError(Problem("--name", what, fix))
    return name


def is_label_name(text: str) -> bool:
    """Return whether it is a DNS-1123 label: a namespace."""
    return len(text) <= LONGEST and bool(_LABEL_1123.fullmatch(text))


def is_subdomain(text: str) -> bool:
    """Return whether it is a DNS-1123 subdomain: the name of most objects."""
    return len(text) <= 253 and bool(_SUBDOMAIN.fullmatch(text))


def is_key(text: str) -> bool:
    """Return whether it is a qualified name: the key of a label or a taint, or a resource."""
    prefix, slash, name = text.rpartition("/")
    return (is_subdomain(prefix) if slash else True) and bool(name) and is_label_value(name)


def is_label_value(text: str) -> bool:
    """Return whether it may be the value of a label."""
    return len(text) <= LONGEST and bool(_LABEL_VALUE.fullmatch(text))


def is_quantity(text: str) -> bool:
    """Return whether it is an amount of memory or storage as Kubernetes writes it, above zero."""
    return len(text) <= 20 and bool(_QUANTITY.fullmatch(text)) and bool(re.search(r"[1-9]", text))


def image_problem(image: str | None) -> Problem | None:
    """Return what is wrong with an image."""
    where, example = "kubernetes.image", "Write for example --image registry.example.org/fullft-cluster:0.1.0."
    if image is None:
        return Problem(where, "is missing", example)
    match = _IMAGE.fullmatch(image) if len(image) <= 512 else None
    if match is None:
        return Problem(where, f"{image[:80]!r} is not the name of an image", example)
    if not match["tag"] and not match["digest"]:
        what = f"{image!r} has no tag and no digest: nobody could say later what ran"
        return Problem(where, what, f"Write for example {image}:0.1.0.")
    return None


def toleration(taint: str) -> dict[str, str] | None:
    """Return the toleration of a taint in ``kubectl taint``'s words, None where it is none."""
    match = _TAINT.fullmatch(taint)
    if match is None or not is_key(match["key"]) or not is_label_value(match["value"] or ""):
        return None
    if match["value"] is None:
        return {"key": match["key"], "operator": "Exists", "effect": match["effect"]}
    return {"key": match["key"], "operator": "Equal", "value": match["value"], "effect": match["effect"]}


def label_problems(labels: dict[str, str], where: str) -> Iterator[Problem]:
    """Yield what is wrong with labels."""
    for key, value in labels.items():
        if not is_key(key):
            yield Problem(where, f"{key!r} is not the key of a label", "Write for example nvidia.com/gpu.product.")
        elif not is_label_value(value):
            what = f"{value!r} is not the value of a label (letters, digits, '-', '_', '.', at most {LONGEST})"
            yield Problem(f"{where}.{key}", what, "Copy it from `kubectl get nodes --show-labels`.")
