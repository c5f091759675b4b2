"""Options that several commands share. Each is a dotted key of the configuration; a flag wins over other sources."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
import msgspec

from fullft_cluster.config import Config, Format
from fullft_cluster.config_load import Resolved, resolve
from fullft_cluster.errors import Problem, UsageError
from fullft_cluster.inventory.nouns import Inventory
from fullft_cluster.resources import share
from fullft_cluster.rundir import RunDir

F = TypeVar("F", bound=Callable[..., Any])

FLAGS: dict[str, str] = {
    "model": "model",
    "weights": "weights",
    "data": "data.train",
    "format": "data.format",
    "on_bad_row": "data.on_bad_row",
    "validation_fraction": "data.validation_fraction",
    "cluster": "cluster",
    "backend": "backend",
    "name": "name",
    "runs_dir": "output.runs_dir",
    "seq_len": "train.seq_len",
    "global_batch_size": "train.global_batch_size",
    "learning_rate": "train.learning_rate",
    "epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "nodes": "resources.nodes",
    "gpus_per_node": "resources.gpus_per_node",
    "gpus": "resources.gpus",
    "max_gpus": "resources.max_gpus",
    "micro_batch_size": "resources.micro_batch_size",
    "offload": "resources.offload",
    "zero_stage": "resources.zero_stage",
    "engine": "resources.engine",
    "loss": "resources.loss",
    "attn_implementation": "resources.attn_implementation",
    "objective": "resources.objective",
    "deadline": "resources.deadline",
    "price_per_gpu_hour": "resources.price_per_gpu_hour",
    "inventory": "inventory",
    "partition": "slurm.partition",
    "account": "slurm.account",
    "qos": "slurm.qos",
    "time": "slurm.time",
    "kind": "kubernetes.kind",
    "image": "kubernetes.image",
    "namespace": "kubernetes.namespace",
}
"""Name of a flag -> dotted key."""

OF_SLURM = {
    "partition": "Write --set kubernetes.queue=NAME for a queue of Kueue, kubernetes.node_selector for a type of node",
    "account": "Write --set kubernetes.queue=NAME for a queue of Kueue",
    "qos": "Write --set kubernetes.queue_priority=NAME in a queue of Kueue, or --set kubernetes.priority_class=NAME",
    "time": "Write --set kubernetes.active_deadline=36h for a last bound on the whole run",
}
"""Flags that SLURM alone knows, and what to write for Kubernetes."""
OF_KUBERNETES = ("kind", "image", "namespace", "context")
"""Flags that Kubernetes alone knows."""


def _presets(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return a completion of the names of YAML files in configs/KIND."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        names = sorted(path.stem for path in (share("configs") / kind).glob("*.yaml"))
        return [name for name in names if name.startswith(incomplete)]

    return complete


_SOURCES = (
    click.option(
        "--config", "config_path", type=click.Path(path_type=Path), help="A YAML job file (see configs/jobs)."
    ),
    click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help="Set any key; wins over the YAML."),
)
_PLAN = (
    click.option(
        "--model", shell_complete=_presets("models"), help="A preset (65b, llama3-8b, ...), a config.json, or a hub id."
    ),
    click.option(
        "--data", metavar="PATH|ID", help="Training rows: a file (.jsonl, .json, .parquet), a directory, or a hub id."
    ),
    click.option(
        "--format",
        type=click.Choice(get_args(Format)),
        help="What the rows look like. [default: auto, told by their keys]",
    ),
    click.option(
        "--on-bad-row", type=click.Choice(["error", "skip"]), help="A row that cannot be used. [default: error]"
    ),
    click.option("--validation-fraction", type=float, help="Share of the rows held out for evaluation. [default: 0]"),
    click.option("--cluster", shell_complete=_presets("clusters"), help="A cluster profile: a name or a YAML file."),
    click.option("--backend", type=click.Choice(["local", "slurm", "kubernetes"]), help="Where it runs."),
    click.option("--seq-len", type=int, help="Tokens in a sequence. [default: 2048]"),
    click.option("--global-batch-size", type=int, help="Sequences an optimizer step."),
    click.option("--learning-rate", type=float, help="Peak learning rate; default by model size."),
    click.option("--epochs", type=int, help="Passes over the data; default by rows."),
    click.option("--max-steps", type=int, help="Stop after so many optimizer steps."),
    click.option("--nodes", type=int, help="Exactly this many nodes."),
    click.option("--gpus-per-node", type=int, help="GPUs of each node."),
    click.option("--gpus", type=int, help="Exactly this many GPUs; default the fewest that fit."),
    click.option("--max-gpus", type=int, help="At most this many GPUs."),
    click.option("--micro-batch-size", type=int, help="Sequences a GPU computes at once."),
    click.option(
        "--offload",
        type=click.Choice(["none", "optimizer", "parameters"]),
        help="What moves to host memory. [default: none, more only where nothing else fits]",
    ),
    click.option("--zero-stage", type=int, help="1, 2 or 3. [default: 3; 2 too where speed or cost is the aim]"),
    click.option("--engine", type=click.Choice(["deepspeed", "fsdp"]), help="[default: deepspeed]"),
    click.option(
        "--loss", type=click.Choice(["naive", "chunked", "liger"]), help="How it is computed. [default: chunked]"
    ),
    click.option(
        "--attn-implementation",
        type=click.Choice(["flash_attention_2", "sdpa", "eager"]),
        help="[default: the first of them that can run]",
    ),
    click.option(
        "--objective",
        type=click.Choice(["fewest-gpus", "least-cost", "fastest"]),
        help="What is best. [default: fewest-gpus]",
    ),
    click.option("--deadline", metavar="24h", help="The run has to end within this time: 24h, 90m, 3d."),
    click.option("--price-per-gpu-hour", type=float, help="For the cost; default the cluster profile's."),
    click.option("--inventory", metavar="slurm|kubernetes|FILE", help="Plan on nodes that exist."),
    click.option("--partition", help="SLURM partition."),
    click.option("--account", help="SLURM account."),
    click.option("--qos", help="SLURM QOS."),
)
_SUBMIT = (
    click.option(
        "--weights", help="A local path, a hub id, or `random` (with tiny and small, which have a tokenizer)."
    ),
    click.option("--name", help="Name of the run; default made of model and data."),
    click.option(
        "--time", help="SLURM time limit of one attempt; a longer run is requeued. [default: from the forecast]"
    ),
    click.option(
        "--kind",
        type=click.Choice(["pytorchjob", "trainjob", "jobset", "job"]),
        help="Kubernetes: what runs it. [default: pytorchjob]",
    ),
    click.option("--image", help="Kubernetes: the workers' image, with a tag or a digest."),
    click.option("--namespace", "-n", help="Kubernetes: the namespace. [default: the context's]"),
    click.option("--context", help="Kubernetes: the kubeconfig's context. [default: the current one]"),
)
runs_dir_option = click.option("--runs-dir", help="Directory of the run directories. [default: runs]")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def apply(options: tuple[Callable[[F], F], ...], command: F) -> F:
    """Add options to a command, in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def plan_options(command: F) -> F:
    """Add the options that decide a plan."""
    return apply((*_SOURCES, *_PLAN), command)


def submit_options(command: F) -> F:
    """Add the options that decide a job."""
    return apply((*_SOURCES, *_PLAN, *_SUBMIT, runs_dir_option), command)


def resolved_from(options: dict[str, Any]) -> Resolved:
    """Return the configuration that a command's options describe.

    Raises UsageError, also for flags that the backend does not know: who gives one expects it to do something. In a
    YAML file and by --set both sections may be filled, so that one file serves several backends.
    """
    flags = {FLAGS[name]: value for name, value in options.items() if name in FLAGS}
    try:
        resolved = resolve(flags, options.get("sets", ()), options.get("config_path"))
    except UsageError as error:  # a backend that a file names is not known then
        more = _foreign_flags(options, options["backend"]) if options.get("backend") else ()
        raise UsageError([*error.problems, *more]) from None
    if problems := list(_foreign_flags(options, resolved.config.backend)):
        raise UsageError(problems)
    return resolved


def _foreign_flags(options: dict[str, Any], backend: str | None) -> Iterator[Problem]:
    """Yield the flags that are given and are of another backend (None: SLURM, which is meant where none is named)."""
    named = f"the backend is {backend}" if backend else "no backend is named, so it is slurm"
    for name, instead in OF_SLURM.items():
        if options.get(name) is not None and backend not in (None, "slurm"):
            fix = f"{instead}; or leave it out." if backend == "kubernetes" else "Leave it out, or use --backend slurm."
            yield Problem(f"--{name}", f"is a flag for SLURM, and {named}", fix)
    for name in OF_KUBERNETES:
        if options.get(name) is not None and backend != "kubernetes":
            fix = "Leave it out, or use --backend kubernetes."
            yield Problem(f"--{name}", f"is a flag for Kubernetes, and {named}", fix)


def inventory_of(config: Config) -> Inventory | None:
    """Return the nodes that the plan is to be laid on; None where none were asked for. Raises SchedulerError."""
    if config.inventory is None:
        return None
    from fullft_cluster.backends.inventory import read_inventory

    return read_inventory(config.inventory)


def find_run(name: str, runs_dir: str | None) -> RunDir:
    """Return the run of that name, or of that path. Raises UsageError when there is none."""
    for path in (Path(runs_dir or "runs") / name, Path(name)):
        if (path / "run.json").is_file():
            return RunDir(path.absolute())
    root = Path(runs_dir or "runs")
    if Path(name).is_dir():
        raise UsageError(Problem(name, "is a directory without run.json, not a run", "Give what `submit` made."))
    known = ", ".join(sorted(path.parent.name for path in root.glob("*/run.json"))[:20]) or "none"
    fix = "Give a name, a path, or --runs-dir; --backend kubernetes looks for it in the cluster."
    raise UsageError(Problem(name, f"no such run in {root} (there: {known})", fix))


def status_command(run: RunDir) -> str:
    """Return the command that shows this run from the current directory."""
    here = run.path.parent == Path("runs").absolute()
    return f"fullft-cluster status {run.name if here else shlex.quote(str(run.path))}"


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout."""
    click.echo(json.dumps(msgspec.to_builtins(value), indent=2))


def say(text: str) -> None:
    """Print prose on stderr."""
    print(text, file=sys.stderr)
