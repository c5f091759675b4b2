"""What runs pods: the kinds that a manifest may hold, their pod templates and how many of each there will be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from fullft_cluster.lint.manifest import Tree

GPU_RESOURCE = re.compile(r"^(?:nvidia\.com/(?:gpu|mig-.+)|amd\.com/gpu|habana\.ai/gaudi)$")
_STEP = "trainer.kubeflow.org/trainjob-ancestor-step"
_BATCH = frozenset(("Job", "CronJob", "JobSet", "TrainingRuntime", "ClusterTrainingRuntime", "TrainJob"))


@dataclass(frozen=True)
class Container:
    """A container of a pod template."""

    tree: Tree
    initial: bool = False

    @property
    def name(self) -> str:
        """Its name, or ''."""
        return self.tree.value("name")

    @property
    def command(self) -> str:
        """Its command and arguments in one line."""
        parts = [*self.tree.list("command"), *self.tree.list("args")]
        return " ".join(part.text for part in parts)

    def command_line(self) -> int:
        """Return the line of its command, or of its arguments."""
        return self.tree.key_line("command") if self.tree.get("command") else self.tree.key_line("args")

    def environment(self) -> Iterator[tuple[str, str, int]]:
        """Yield name, value (as written) and line of each variable that has a plain value."""
        for entry in self.tree.list("env"):
            if entry.get("value") is not None:
                yield entry.value("name"), entry.value("value"), entry.key_line("value")

    def resources(self, section: str) -> dict[str, tuple[str, int]]:
        """Return amount and line of each resource in ``limits`` or ``requests``."""
        found = self.tree.get("resources", section)
        return {name: (value.text, line) for name, value, line in found.items()} if found else {}

    @property
    def gpus(self) -> int:
        """How many GPUs it may use."""
        amounts = {**self.resources("requests"), **self.resources("limits")}
        counts = [text for name, (text, _) in amounts.items() if GPU_RESOURCE.match(name)]
        return sum(int(text) for text in counts if text.isdecimal() and len(text) < 6)


@dataclass(frozen=True)
class Pods:
    """A pod template with its role and count."""

    role: str
    count: int
    template: Tree
    """What holds ``metadata`` and ``spec``."""
    owner: Tree
    """What holds the template: the replica spec, or the Job's spec."""
    trainer: bool = False
    """Whether a TrainingRuntime says that its TrainJob trains here, with GPUs that the TrainJob asks for."""

    @cached_property
    def spec(self) -> Tree:
        """The pod's spec."""
        return self.template.get("spec") or self.template

    @cached_property
    def containers(self) -> list[Container]:
        """Its containers, the initial ones last."""
        first = [Container(tree) for tree in self.spec.list("containers")]
        return first + [Container(tree, initial=True) for tree in self.spec.list("initContainers")]

    @cached_property
    def gpus(self) -> int:
        """GPUs of one pod."""
        return sum(container.gpus for container in self.containers)


@dataclass(frozen=True)
class Workload:
    """One object of a manifest, with every pod template in it, and the other objects of the same file."""

    tree: Tree
    path: str
    siblings: tuple[Tree, ...] = ()

    @property
    def kind(self) -> str:
        """Its kind."""
        return self.tree.value("kind")

    @property
    def group(self) -> str:
        """Its API group, '' for the core."""
        return self.tree.value("apiVersion").rpartition("/")[0]

    @cached_property
    def pods(self) -> list[Pods]:
        """Its pod templates."""
        return [pods for pods in _pods(self.tree, self.kind) if pods.template.is_mapping]

    @property
    def total(self) -> int:
        """How many pods there will be at once."""
        return sum(pods.count for pods in self.pods)

    @property
    def is_batch(self) -> bool:
        """Whether it runs to an end, as training does, rather than serves."""
        return self.kind in _BATCH or self.has_replica_specs or self.group == "batch.volcano.sh"

    @cached_property
    def has_replica_specs(self) -> bool:
        """Whether it is a job of Kubeflow's training operator v1."""
        return bool(self.group == "kubeflow.org" and _replica_specs(self.tree))

    @property
    def is_pytorchjob(self) -> bool:
        """Whether it is a PyTorchJob v1."""
        return self.kind == "PyTorchJob" and self.has_replica_specs

    @property
    def kind_line(self) -> int:
        """The line of its kind: where a finding about the whole object points."""
        return self.tree.key_line("kind")

    def training_pods(self) -> list[Pods]:
        """Return the pods that train: with GPUs, in something that runs to an end."""
        return [pods for pods in self.pods if pods.gpus or pods.trainer] if self.is_batch else []

    def label(self, *names: str) -> str:
        """Return the first of these labels, or annotations, that the object has."""
        values = (self.tree.value("metadata", where, name) for name in names for where in ("labels", "annotations"))
        return next((value for value in values if value), "")


def _replica_specs(tree: Tree) -> Tree | None:
    spec = tree.get("spec")
    found = [value for name, value, _ in spec.items() if name.endswith("ReplicaSpecs")] if spec else []
    return found[0] if found else None


def _count(tree: Tree, *path: str) -> int:
    found = tree.get(*path)
    return found.number if found and found.number is not None else 1


def _pods(tree: Tree, kind: str) -> Iterator[Pods]:
    spec = tree.get("spec")
    if spec is None or kind in ("PodGroup", "Workload"):
        return
    replicas = _replica_specs(tree)
    if replicas:
        for role, owner, _ in replicas.items():
            yield Pods(role, _count(owner, "replicas"), owner.get("template") or owner, owner)
    elif kind == "Pod":
        yield Pods("pod", 1, tree, tree)
    elif kind in ("JobSet", "TrainingRuntime", "ClusterTrainingRuntime"):
        for job in (spec if kind == "JobSet" else spec.get("template", "spec") or spec).list("replicatedJobs"):
            trainer = job.value("template", "metadata", "labels", _STEP) == "trainer"
            yield from _job(job.get("template", "spec"), job.value("name"), _count(job, "replicas"), trainer)
    elif kind == "CronJob":
        yield from _job(spec.get("jobTemplate", "spec"), "job", 1)
    elif kind == "Job" and spec.get("tasks"):  # Volcano's
        for task in spec.list("tasks"):
            yield Pods(task.value("name"), _count(task, "replicas"), task.get("template") or task, task)
    elif kind == "Job":
        yield from _job(spec, "job", 1)
    elif spec.get("template", "spec", "containers"):  # Deployment, StatefulSet, DaemonSet, and kinds like them
        yield Pods(kind, _count(spec, "replicas"), spec.get("template") or spec, spec)


def _job(spec: Tree | None, role: str, jobs: int, trainer: bool = False) -> Iterator[Pods]:
    template = spec.get("template") if spec else None
    if spec and template:
        yield Pods(role, jobs * _count(spec, "parallelism"), template, spec, trainer)
