"""Rules about the options of an sbatch script: what is asked of SLURM, and what is forgotten."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fullft_cluster.lint.nouns import Hit, Rule, quoted
from fullft_cluster.lint.sbatch import SbatchScript

_MAN = "https://slurm.schedmd.com/sbatch.html"
MIN_LEAD_SECONDS = 60
DEFAULT_LEAD_SECONDS = 60
"""What SLURM takes where ``--signal`` names no time (sbatch(1))."""


def _no_shebang(script: SbatchScript) -> Iterator[Hit]:
    if script.text.startswith("\ufeff"):
        yield Hit(1, "a byte order mark stands before `#!`")
    elif not script.text.startswith("#!"):
        yield Hit(1, "the first line is not `#!` and an interpreter")


def _dos_lines(script: SbatchScript) -> Iterator[Hit]:
    if script.dos_line:
        yield Hit(script.dos_line, "the line ends in \\r\\n")


def _ignored(script: SbatchScript) -> Iterator[Hit]:
    for line in script.ignored:
        indented = not script.lines[line - 1].startswith("#")
        yield Hit(line, "`#SBATCH` is indented" if indented else "`#SBATCH` stands after the first command")


def _variable(script: SbatchScript) -> Iterator[Hit]:
    for directive in script.directives:
        if re.search(r"\$\{?[A-Za-z_]|\$\(|`", directive.value):
            yield Hit(directive.line, f"--{quoted(directive.name)} holds a shell expansion")


def _no_signal(script: SbatchScript) -> Iterator[Hit]:
    if script.trains and script.option("signal") is None:
        yield Hit(script.header_line, "there is no --signal")


def _signal_lead(script: SbatchScript) -> Iterator[Hit]:
    directive = script.option("signal")
    match = re.search(r"@([0-9]{1,6})$", directive.value) if directive else None
    lead = int(match.group(1)) if match else DEFAULT_LEAD_SECONDS
    if directive and lead < MIN_LEAD_SECONDS:
        yield Hit(directive.line, f"--signal warns {lead} s before the end")


def _appends(script: SbatchScript) -> bool:
    mode = script.option("open-mode")
    return mode is not None and mode.value.lower().startswith("a")


def _requeue_truncates(script: SbatchScript) -> Iterator[Hit]:
    requeue = script.option("requeue", "no-requeue")
    if requeue and requeue.name == "requeue" and not _appends(script):
        yield Hit(requeue.line, "--requeue without --open-mode=append")


def _requeue_unsaid(script: SbatchScript) -> Iterator[Hit]:
    if script.trains and script.option("requeue", "no-requeue") is None:
        yield Hit(script.header_line, "neither --requeue nor --no-requeue")


def _log_overwritten(script: SbatchScript) -> Iterator[Hit]:
    for name in ("output", "error"):
        directive = script.option(name)
        if directive is None or _appends(script) or directive.value in ("", "/dev/null", "none"):
            continue
        if not re.search(r"%[0-9]*[jAJ]|\$", directive.value):
            yield Hit(directive.line, f"--{name} is the same file for every job")


def _no_memory(script: SbatchScript) -> Iterator[Hit]:
    memory = script.option("mem", "mem-per-cpu", "mem-per-gpu")
    alone = script.option("exclusive") is not None
    if memory is None and not alone:
        yield Hit(script.header_line, "no --mem, --mem-per-cpu or --mem-per-gpu")
    elif memory and memory.name == "mem" and re.fullmatch(r"0+[KMGT]?", memory.value) and not alone:
        yield Hit(memory.line, "--mem=0 without --exclusive")


def _no_time(script: SbatchScript) -> Iterator[Hit]:
    if script.option("time") is None:
        yield Hit(script.header_line, "there is no --time")


def _tasks_times_gpus(script: SbatchScript) -> Iterator[Hit]:
    tasks, each, gpus = script.tasks_per_node, script.count("gpus-per-task"), script.gpus_per_node
    directive = script.option("gpus-per-task")
    if script.heterogeneous or directive is None or not (tasks and each and gpus) or tasks * each == gpus:
        return
    yield Hit(directive.line, f"{tasks} tasks a node x {each} GPUs a task is {tasks * each}, not {gpus} GPUs a node")


RULES: tuple[Rule[SbatchScript], ...] = (
    Rule(
        "sbatch-no-shebang",
        "sbatch refuses a script whose first two bytes are not `#!`.",
        "Begin the file with `#!/bin/bash`, without a byte order mark.",
        f"{_MAN}#SECTION_DESCRIPTION",
        _no_shebang,
    ),
    Rule(
        "sbatch-dos-lines",
        "sbatch refuses a script with DOS line ends.",
        "Convert it: `dos2unix FILE`.",
        "https://github.com/SchedMD/slurm/blob/master/src/sbatch/sbatch.c",
        _dos_lines,
    ),
    Rule(
        "sbatch-ignored-directive",
        "sbatch stops reading options at the first command, and reads none that is indented: the option is a comment.",
        "Move it up, above every command, and begin the line with it.",
        f"{_MAN}#SECTION_DESCRIPTION",
        _ignored,
    ),
    Rule(
        "sbatch-variable-in-directive",
        "`#SBATCH` lines are read by sbatch, not by the shell: the text is taken as it stands.",
        "Write the value, a pattern such as %j, or give the option on sbatch's command line.",
        f"{_MAN}#SECTION_DESCRIPTION",
        _variable,
    ),
    Rule(
        "sbatch-no-signal",
        "Without it the first sign of the time limit is SIGTERM, with KillWait (30 s by default) until SIGKILL: too "
        "short for the checkpoint of a large model.",
        "Write `#SBATCH --signal=B:USR1@SECONDS`, with the seconds of a step and a checkpoint, and handle it.",
        f"{_MAN}#OPT_signal",
        _no_signal,
    ),
    Rule(
        "sbatch-signal-lead",
        "A step must end and a checkpoint be written before the limit. At 14 bytes a parameter and 2 GB/s, 7B takes "
        "47 s and 65B 457 s.",
        "Compute it: the longest step + checkpoint bytes / write bandwidth + a margin, in --signal=B:USR1@SECONDS.",
        f"{_MAN}#OPT_signal",
        _signal_lead,
    ),
    Rule(
        "sbatch-requeue-truncates",
        "A requeued job opens its log anew: unless the site sets JobFileAppend, what the earlier life wrote is gone.",
        "Add `#SBATCH --open-mode=append`.",
        f"{_MAN}#OPT_open-mode",
        _requeue_truncates,
    ),
    Rule(
        "sbatch-requeue-unsaid",
        "Whether the job starts again after a failed node or preemption is then the site's JobRequeue: on one "
        "cluster it resumes, on another it is over, or it starts from scratch where it should not.",
        "Say it: `#SBATCH --requeue` where the script resumes from a checkpoint, else `#SBATCH --no-requeue`.",
        f"{_MAN}#OPT_requeue",
        _requeue_unsaid,
    ),
    Rule(
        "sbatch-log-overwritten",
        "The next job truncates the file, and two jobs at once write over each other.",
        "Put %j (or %A_%a in an array) into the name, or add `#SBATCH --open-mode=append`.",
        f"{_MAN}#OPT_output",
        _log_overwritten,
    ),
    Rule(
        "sbatch-memory",
        "Host memory is then the site's default, often little for each CPU, and loading a model is killed as out of "
        "memory; 0 asks for all of a node's memory, so the job waits for a node that nobody else is on.",
        "Ask for what it needs, `#SBATCH --mem=236G`, or for whole nodes with --exclusive.",
        f"{_MAN}#OPT_mem",
        _no_memory,
    ),
    Rule(
        "sbatch-no-time",
        "The limit is then the partition's default: minutes at some sites, and where it is long, no backfill.",
        "Add `#SBATCH --time=HH:MM:SS`.",
        f"{_MAN}#OPT_time",
        _no_time,
    ),
    Rule(
        "sbatch-tasks-gpus",
        "GPUs a task times tasks a node must be the GPUs a node: else GPUs lie idle, or the job is refused or never "
        "starts.",
        "Make --ntasks-per-node x --gpus-per-task equal --gpus-per-node, or give only one of the two GPU options.",
        f"{_MAN}#OPT_gpus-per-task",
        _tasks_times_gpus,
    ),
)
