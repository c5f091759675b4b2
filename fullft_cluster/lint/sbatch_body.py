"""Rules about the commands of an sbatch script: how it launches, listens to signals, and ends."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fullft_cluster.lint.nouns import Hit, Rule, quoted
from fullft_cluster.lint.sbatch import SbatchScript, runs_long
from fullft_cluster.lint.secret_words import secret_in_line
from fullft_cluster.lint.shell import Command

_CONTAINERS = frozenset(("singularity", "apptainer", "enroot", "docker", "podman", "shifter", "sarus"))
_OWN_LAUNCHERS = frozenset(("torchrun", "accelerate"))
_BASH = "https://www.gnu.org/software/bash/manual/bash.html"


def _handles(script: SbatchScript, signal: str) -> bool:
    """Whether the shell, or what it becomes by exec, has a handler of its own for a signal."""
    if any(signal in signals for _line, _handler, signals in script.traps):
        return True
    return any(command.replaces_shell for command in script.commands)


def _signal_lost(script: SbatchScript) -> Iterator[Hit]:
    directive = script.option("signal")
    if directive is None or not directive.value:
        return
    prefix, _, rest = directive.value.rpartition(":")
    signal = rest.split("@")[0].upper().removeprefix("SIG")
    signal = {"10": "USR1", "12": "USR2", "15": "TERM"}.get(signal, signal)
    if "B" in prefix.upper():
        if not _handles(script, signal):
            yield Hit(directive.line, f"--signal=B: sends {quoted(signal)} to a batch shell that has no trap for it")
        return
    for line, _handler, signals in script.traps:
        if signal in signals:
            yield Hit(line, f"the trap for {quoted(signal)} never runs: without B: only the steps get the signal")
            return
    launcher = next((c for c in script.commands if c.name == "srun" and script.starts_launcher(c)), None)
    told = re.search(r"signals[-_]to[-_]handle", script.text, re.IGNORECASE)  # newer torchruns can be asked to
    if launcher and signal in ("USR1", "USR2") and not told:
        yield Hit(launcher.line, f"the launcher gets {signal} and does not hand it to the workers")


def _waits_in_front(script: SbatchScript) -> Iterator[Hit]:
    if not script.traps:
        return
    first = script.traps[0][0]
    for command in script.commands:
        if command.line >= first and runs_long(command) and command.after != "&" and not command.replaces_shell:
            yield Hit(command.line, f"`{quoted(command.name)}` runs in the foreground of a script with a trap")
            return


def _waits_once(script: SbatchScript) -> Iterator[Hit]:
    waits = [command for command in script.commands if command.name == "wait"]
    inside = [command for command in script.commands if re.search(r"\bwait\b|scontrol\s+requeue", command.text)]
    background = any(command.after == "&" and runs_long(command) for command in script.commands)
    if script.traps and background and len(waits) == 1 and len(inside) == 1 and not waits[0].in_loop:
        yield Hit(waits[0].line, "a single `wait` in a script with a trap")


def _requeue_in_container(script: SbatchScript) -> Iterator[Hit]:
    for command in script.commands:
        pyxis = command.name == "srun" and command.option("--container-image", "--container-name") is not None
        runs_one = command.name in _CONTAINERS or (
            command.name == "srun" and any(word.text in _CONTAINERS for word in command.program)
        )
        inside = re.search(r"\bscontrol\b", command.text)
        if (pyxis or runs_one) and inside and not _expanded_outside(command.text):
            yield Hit(command.line, "`scontrol` is called inside a container")


def _expanded_outside(text: str) -> bool:
    """Whether every ``scontrol`` in a command is in a ``$(...)`` that the batch shell expands before."""
    bare = re.sub(r"'[^']*'", lambda quote: quote.group().replace("$(", "( "), text)
    return not re.search(r"\bscontrol\b", re.sub(r"(?<!\\)\$\([^()]*\)", "", bare))


def _export_drops(script: SbatchScript) -> Iterator[Hit]:
    steps = [command for command in script.commands if command.name == "srun"]
    for command in steps:
        value = command.option("--export")
        if value is not None and not _keeps_all(value):
            yield Hit(command.line, "`srun --export` without ALL")
    directive = script.option("export")
    if directive is None or _keeps_all(directive.value) or "SLURM_EXPORT_ENV" in script.text:
        return
    for command in steps:
        if command.option("--export") is None:
            yield Hit(command.line, f"srun inherits --export of line {directive.line}, which is without ALL")


def _keeps_all(value: str) -> bool:
    return "ALL" in value.upper().split(",") or value.startswith("$")


def _launcher_per_gpu(script: SbatchScript) -> Iterator[Hit]:
    for command in script.commands:
        if script.heterogeneous or command.name != "srun" or not script.starts_launcher(command):
            continue
        given = command.option("--ntasks-per-node")
        total = command.option("-n", "--ntasks")
        tasks = int(given) if given and given.isdecimal() and len(given) < 9 else script.tasks_per_node
        if total and total.isdecimal() and given is None and len(total) < 9:
            tasks = int(total) // script.nodes
        if tasks and tasks > 1 and not (total or "").startswith("$"):
            yield Hit(command.line, f"srun starts the launcher {tasks} times a node")


def _launcher_one_node(script: SbatchScript) -> Iterator[Hit]:
    for command in script.commands:
        if script.nodes > 1 and not script.heterogeneous and _is_bare_launcher(command):
            yield Hit(command.line, f"`{quoted(command.name)}` on one of {script.nodes} nodes, without srun")


def _is_bare_launcher(command: Command) -> bool:
    if command.name in _OWN_LAUNCHERS:
        return command.name == "torchrun" or "launch" in [word.text for word in command.program[1:2]]
    return bool(re.match(r"python[0-9.]*$", command.name)) and "torch.distributed" in command.text


def _fixed_port(script: SbatchScript) -> Iterator[Hit]:
    if script.option("exclusive") is not None:
        return
    for value, line in script.variables.get("MASTER_PORT", []):
        if re.fullmatch(r"[0-9]{1,5}", value.strip("\"'")):
            yield Hit(line, "MASTER_PORT is a fixed number")
    option = r"--(?:master[_-]port|main[_-]process[_-]port)[ =]+[0-9]+\b|--rdzv[_-]endpoint[ =]+[^\s:]+:[0-9]+\b"
    for command in script.commands:
        if re.search(option, command.text) and not re.search(r"--rdzv[_-]endpoint[ =]+\S+:0\b", command.text):
            yield Hit(command.line, "the rendezvous port is a fixed number")


def _master_address(script: SbatchScript) -> Iterator[Hit]:
    if script.nodes < 2:
        return
    for value, line in script.variables.get("MASTER_ADDR", []):
        if re.search(r"\blocalhost\b|\b127\.0\.", value):
            yield Hit(line, f"MASTER_ADDR may be this machine's loopback on {script.nodes} nodes")
    for command in script.commands:
        escaped = re.search(r"MASTER_ADDR=[\"']?\\\$\((?:hostname|uname)", command.text)
        own = re.search(r"'[^']*MASTER_ADDR=\"?(?:\$\(|`)(?:hostname|uname)", command.text)
        if command.name == "srun" and (escaped or own):
            yield Hit(command.line, "MASTER_ADDR is each task's own host name")
        elif re.search(r"--(?:master_addr|master-addr|main_process_ip|rdzv_endpoint|rdzv-endpoint)[ =]+"
                       r"(?:localhost|127\.0\.)", command.text):  # fmt: skip
            yield Hit(command.line, f"the rendezvous is at this machine's loopback on {script.nodes} nodes")


def _cpus_not_inherited(script: SbatchScript) -> Iterator[Hit]:
    asked = script.count("cpus-per-task")
    if not asked or asked < 2 or "SRUN_CPUS_PER_TASK" in script.variables:
        return
    for command in script.commands:
        if command.name == "srun" and runs_long(command) and command.option("--cpus-per-task", "-c") is None:
            yield Hit(command.line, f"srun does not pass on --cpus-per-task={asked}")


def _pipe_hides_exit(script: SbatchScript) -> Iterator[Hit]:
    if re.search(r"pipefail|PIPESTATUS", script.text):
        return
    for command in script.commands:
        if command.after in ("|", "|&") and runs_long(command):
            yield Hit(command.line, f"`{quoted(command.name)}` ends in a pipe")


def _secret(script: SbatchScript) -> Iterator[Hit]:
    for number, line in enumerate(script.lines, start=1):
        found = secret_in_line(line)
        if found:
            yield Hit(number, f"{quoted(found)} is written out")


RULES: tuple[Rule[SbatchScript], ...] = (
    Rule(
        "sbatch-signal-lost",
        "With B: the batch shell alone is signalled, and a shell without a trap dies of it; without B: the steps alone "
        "are, and torchrun (without --signals-to-handle), deepspeed and accelerate keep USR1 and USR2 from their "
        "workers.",
        "Use --signal=B:USR1@SECONDS with `trap HANDLER USR1`, start `srun ... &`, and `wait`.",
        "https://github.com/pytorch/pytorch/issues/154849",
        _signal_lost,
    ),
    Rule(
        "sbatch-trap-foreground",
        "bash runs a trap only after the command in the foreground has ended: the warning is heard when the job is "
        "over.",
        "Start it in the background and wait: `srun ... & pid=$!; wait $pid`.",
        f"{_BASH}#Signals",
        _waits_in_front,
    ),
    Rule(
        "sbatch-wait-once",
        "`wait` returns as soon as a trapped signal comes: the script runs on to its end, and SLURM kills the step "
        "in the middle of its checkpoint.",
        "Wait again after the signal: `wait $pid; while kill -0 $pid 2>/dev/null; do wait $pid; done`.",
        f"{_BASH}#Signals",
        _waits_once,
    ),
    Rule(
        "sbatch-requeue-in-container",
        "Containers have no scontrol, nor the key to speak to slurmctld: the requeue fails, or an address falls back "
        "to localhost.",
        "Call scontrol in the batch script, on the host, and pass the result in.",
        "https://github.com/NVIDIA/pyxis/issues/129",
        _requeue_in_container,
    ),
    Rule(
        "sbatch-export-drops",
        "Tasks get none of the script's environment but what is named: PATH, LD_LIBRARY_PATH, MASTER_ADDR and NCCL's "
        "settings are gone.",
        "Write `--export=ALL,NAME=VALUE`; after `#SBATCH --export=NONE`, `export SLURM_EXPORT_ENV=ALL`.",
        "https://slurm.schedmd.com/srun.html#OPT_export",
        _export_drops,
    ),
    Rule(
        "sbatch-launcher-per-gpu",
        "Each task starts a launcher, and each launcher a process for every GPU: n x n processes fight for the GPUs "
        "and the port.",
        "Use --ntasks-per-node=1 with a launcher, or one task a GPU without one.",
        "https://github.com/ultralytics/yolov5/issues/12429",
        _launcher_per_gpu,
    ),
    Rule(
        "sbatch-launcher-one-node",
        "The batch script runs on the first node alone: the other nodes idle while the rendezvous waits for them.",
        "Start it by srun, once a node: `srun --ntasks-per-node=1 torchrun ...`.",
        "https://github.com/stas00/ml-engineering/tree/master/orchestration/slurm",
        _launcher_one_node,
    ),
    Rule(
        "sbatch-fixed-port",
        "Two jobs whose first tasks share a node ask for the same port: the second dies of EADDRINUSE, or joins the "
        "first.",
        "Derive it from the job: `MASTER_PORT=$((15000 + SLURM_JOB_ID % 16000))`, or ask for --exclusive.",
        "https://github.com/pytorch/pytorch/issues/126510",
        _fixed_port,
    ),
    Rule(
        "sbatch-master-addr",
        "Every node then waits for itself, or becomes a world of its own that trains apart in silence.",
        'Take the first node, on the host: `MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)`.',
        "https://docs.pytorch.org/docs/stable/distributed.html#environment-variable-initialization",
        _master_address,
    ),
    Rule(
        "sbatch-cpus-per-task",
        "Since SLURM 22.05 srun does not inherit --cpus-per-task from sbatch: each task gets one CPU, and data "
        "loading and the optimizer on the host crawl.",
        'Add `export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"`, or give srun --cpus-per-task.',
        "https://slurm.schedmd.com/sbatch.html#OPT_cpus-per-task",
        _cpus_not_inherited,
    ),
    Rule(
        "sbatch-pipe-hides-exit",
        "A pipe's exit code is that of its last command: a training run that failed ends as COMPLETED, and `afterok` "
        "jobs start.",
        "Add `set -o pipefail`, or let --output keep the log.",
        f"{_BASH}#Pipelines",
        _pipe_hides_exit,
    ),
    Rule(
        "sbatch-secret",
        "The script is kept by SLURM, shown by `scontrol write batch_script`, and lands in logs and repositories.",
        "Export it in the shell that submits, or read it from a file that only you can read; revoke this one.",
        "https://github.com/NVIDIA-NeMo/Gym/pull/2354",
        _secret,
    ),
)
