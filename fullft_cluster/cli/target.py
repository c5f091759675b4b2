"""Which run a command is about: one in a directory of runs here, or one in a Kubernetes cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import click

from fullft_cluster.backends import Backend, Submission, backend_of
from fullft_cluster.cli.options import F, apply, find_run, inventory_of, say, status_command
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.render import SCRIPTS
from fullft_cluster.rundir import RunDir
from fullft_cluster.status import ENDED, Status

if TYPE_CHECKING:
    from fullft_cluster.backends.kubernetes import KubernetesBackend

_OPTIONS = (
    click.option(
        "--backend",
        type=click.Choice(["local", "slurm", "kubernetes"]),
        help="Where the run is: `kubernetes` asks the cluster. [default: as its run directory says]",
    ),
    click.option("--context", help="Kubernetes: the kubeconfig's context. [default: the current one]"),
    click.option("--namespace", "-n", help="Kubernetes: the namespace. [default: the context's]"),
)
WHERE = ("backend", "context", "namespace")


def where_options(command: F) -> F:
    """Add the options that say where a run is."""
    return apply(_OPTIONS, command)


class Target(Protocol):
    """A run, as the commands of its life see it."""

    @property
    def name(self) -> str:
        """Return the run's name."""

    def status(self) -> Status:
        """Return what it is doing."""

    def cancel(self, *, now: bool) -> str:
        """End it; return a sentence on what was done."""

    def resume(self) -> Submission:
        """Start it again."""

    def relayout(self, nodes: int | None, gpus_per_node: int | None) -> None:
        """Make a run that has ended ready for other GPUs."""

    @property
    def status_command(self) -> str:
        """Return the command that shows it."""


@dataclass
class DirectoryTarget:
    """A run in a directory that this machine sees."""

    run: RunDir
    backend: Backend

    @property
    def name(self) -> str:
        """Return the run's name."""
        return self.run.name

    def status(self) -> Status:
        """Return what it is doing."""
        return self.backend.status(self.run)

    def cancel(self, *, now: bool) -> str:
        """End it."""
        return self.backend.cancel(self.run, now=now)

    def resume(self) -> Submission:
        """Start it again."""
        script = self.run.path / SCRIPTS[str(self.run.read_run()["backend"])]
        return self.backend.resume(self.run, str(script))

    def relayout(self, nodes: int | None, gpus_per_node: int | None) -> None:
        """Plan it anew for other GPUs, and write its files anew. Raises UsageError unless it has ended."""
        from fullft_cluster.config_load import read_config
        from fullft_cluster.plan_words import count
        from fullft_cluster.relayout import relayout, write

        state = self.status().state
        if state not in ENDED:
            raise UsageError(Problem(self.name, f"has not ended ({state})", "Cancel it first."))
        laid = relayout(self.run, nodes, gpus_per_node, inventory_of(read_config(self.run.config)))
        kept = write(self.run, laid)
        plan = laid.plan
        say(
            f"planned anew: {count(plan.nodes, 'node')} with {plan.gpus_per_node} each, micro-batch "
            f"{plan.micro_batch_size} x {plan.gradient_accumulation_steps}; the files before are in {kept}"
        )

    @property
    def status_command(self) -> str:
        """Return the command that shows it."""
        return status_command(self.run)


@dataclass
class ClusterTarget:
    """A run in a Kubernetes cluster."""

    backend: KubernetesBackend
    name: str

    def status(self) -> Status:
        """Return what it is doing."""
        return self.backend.status(self.name)

    def cancel(self, *, now: bool) -> str:
        """End it."""
        return self.backend.cancel(self.name, now=now)

    def resume(self) -> Submission:
        """Start it again."""
        return self.backend.resume(self.name, say)

    def relayout(self, nodes: int | None, gpus_per_node: int | None) -> None:
        """Refuse: the pods know their run by the bytes of its plan and configuration."""
        what = "goes on with the nodes that it was submitted for: on Kubernetes they are a part of its objects"
        raise UsageError(Problem(self.name, what, "Leave out --nodes and --gpus-per-node."))

    @property
    def status_command(self) -> str:
        """Return the command that shows it."""
        return f"fullft-cluster status {self.name} {self.backend.flags}"


def in_cluster(where: dict[str, Any]) -> bool:
    """Return whether the options say that the run is in a Kubernetes cluster. Raises UsageError where they disagree."""
    given = [f"--{key}" for key in ("context", "namespace") if where.get(key)]
    if given and where.get("backend") in ("local", "slurm"):
        what = f"{' and '.join(given)} are of Kubernetes, and --backend is {where['backend']}"
        raise UsageError(Problem("options", what, "Leave one of them out."))
    return where.get("backend") == "kubernetes" or bool(given)


def cluster_backend(where: dict[str, Any]) -> KubernetesBackend:
    """Return the backend for the cluster and namespace that the options name."""
    from fullft_cluster.backends.kubernetes import KubernetesBackend
    from fullft_cluster.kubernetes_api import connect

    return KubernetesBackend(connect(where.get("context")), where.get("namespace"), where.get("context"))


def find_target(name: str, runs_dir: str | None, where: dict[str, Any]) -> Target:
    """Return the run of that name. Raises UsageError when there is none."""
    if not in_cluster(where):
        run = find_run(name, runs_dir)
        backend = str(run.read_run().get("backend"))
        if backend != "kubernetes":
            return DirectoryTarget(run, backend_of(backend))
        name, where = run.name, {**where, "namespace": _namespace(run)}  # its volume is mounted here as well
    return ClusterTarget(cluster_backend(where), name)


def _namespace(run: RunDir) -> str | None:
    from fullft_cluster.config_load import read_config

    try:
        return read_config(run.config).kubernetes.namespace
    except (OSError, UsageError):
        return None
