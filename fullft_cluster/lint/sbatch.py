"""An sbatch script: its ``#SBATCH`` options with their lines, and the commands of its body.

Options are read as sbatch reads them: from lines that begin with ``#SBATCH``, up to the first line that is neither
comment nor blank (https://slurm.schedmd.com/sbatch.html#SECTION_DESCRIPTION); what comes later is kept apart.
"""

from __future__ import annotations

import re
import shlex
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property

from fullft_cluster.lint.sbatch_names import SHORT, long_name
from fullft_cluster.lint.shell import Command, read_commands

MAGIC = "#SBATCH"
MAX_LINE = 1 << 16
"""Characters of a line of options that are read."""
_COUNT = re.compile(r"^[0-9]+$")
_LAUNCHER = re.compile(r"\btorchrun\b|\bdeepspeed\b|\baccelerate\s+launch\b|\btorch\.distributed\.(?:run|launch)\b")


@dataclass(frozen=True)
class Directive:
    """One option of a ``#SBATCH`` line; ``value`` is '' where it has none."""

    line: int
    name: str
    value: str


@dataclass
class SbatchScript:
    """A batch script as the rules see it."""

    path: str
    text: str
    directives: list[Directive] = field(default_factory=list)
    ignored: list[int] = field(default_factory=list)
    """Lines of ``#SBATCH`` that sbatch does not read: after the first command, or indented."""
    heterogeneous: bool = False
    dos_line: int = 0
    """The first line that ends in ``\\r\\n``, or 0."""

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the file."""
        return self.text.split("\n")

    @cached_property
    def commands(self) -> list[Command]:
        """The commands of the body, in order."""
        return read_commands(self.text)

    @cached_property
    def header_line(self) -> int:
        """The line that a finding about a missing option names: the first ``#SBATCH``, or the first line."""
        return self.directives[0].line if self.directives else 1

    def option(self, *names: str) -> Directive | None:
        """Return the option that counts: the last given of these names."""
        found = [directive for directive in self.directives if directive.name in names]
        return found[-1] if found else None

    def count(self, name: str) -> int | None:
        """Return a count (``--nodes=4``; ``2-4`` is 4 at most, ``a100:8`` is 8), or None where it is not one."""
        directive = self.option(name)
        if directive is None:
            return None
        last = re.split("[-:]", directive.value.split(",")[0])[-1]
        return int(last) if _COUNT.match(last) and len(last) < 9 else None

    @cached_property
    def nodes(self) -> int:
        """How many nodes the job may have; 1 where it does not say."""
        return self.count("nodes") or 1

    @cached_property
    def gpus_per_node(self) -> int | None:
        """GPUs a node by ``--gpus-per-node`` or ``--gres=gpu:...``, or None."""
        gres = self.option("gres")
        for part in gres.value.split(",") if gres else ():
            fields = part.removeprefix("gres/").replace("=", ":").split("(")[0].split(":")
            if fields[0] == "gpu":
                return int(fields[-1]) if _COUNT.match(fields[-1]) and len(fields[-1]) < 9 else 1
        return self.count("gpus-per-node")

    @cached_property
    def tasks_per_node(self) -> int | None:
        """Tasks a node by ``--ntasks-per-node``, or by ``--ntasks`` over the nodes where that divides; or None."""
        total, a_node = self.count("ntasks"), self.count("ntasks-per-node")
        if a_node is not None:
            return a_node
        return total // self.nodes if total is not None and total % self.nodes == 0 else None

    @cached_property
    def trains(self) -> bool:
        """Whether it is a training job: it asks for GPUs, or starts a launcher of training processes."""
        asks = self.gpus_per_node is not None or self.option("gpus", "gpus-per-task", "gpus-per-socket") is not None
        return asks or any(_LAUNCHER.search(command.text) for command in self.commands)

    @cached_property
    def variables(self) -> dict[str, list[tuple[str, int]]]:
        """Values and lines of every variable that the body sets."""
        found: dict[str, list[tuple[str, int]]] = {}
        for command in self.commands:
            for name, value, line in command.assignments:
                found.setdefault(name, []).append((value, line))
        return found

    @cached_property
    def traps(self) -> list[tuple[int, str, set[str]]]:
        """Line, handler and signals (``USR1``) of each ``trap`` that runs something on a signal."""
        found = []
        for command in self.commands:
            words = [word.text for word in command.program]
            if command.name != "trap" or len(words) < 3 or words[1] in ("", "-", "-l", "-p"):
                continue
            signals = {word.upper().removeprefix("SIG") for word in words[2:]}
            signals = {_NUMBERS.get(signal, signal) for signal in signals} - {"EXIT", "ERR", "DEBUG", "RETURN", "--"}
            if signals:
                found.append((command.line, words[1], signals))
        return found

    def starts_launcher(self, command: Command) -> bool:
        """Whether a command starts torchrun, deepspeed or accelerate: itself, by srun, or by a variable."""
        names = re.findall(r"\$\{?([A-Za-z_][A-Za-z0-9_]{0,60})", command.text)[:50]
        values = [value for name in names for value, _ in self.variables.get(name, [])[-1:]]
        return any(_LAUNCHER.search(text) for text in (command.text, *values))


_NUMBERS = {"0": "EXIT", "1": "HUP", "2": "INT", "10": "USR1", "12": "USR2", "15": "TERM", "18": "CONT"}
_LONG = frozenset(("srun", "mpirun", "mpiexec", "torchrun", "deepspeed", "accelerate"))
_WORKER = re.compile(r"^(?:python[0-9.]*|bash|sh|torchrun|deepspeed|accelerate)$|\.(?:py|sh)$")
BRIEF = frozenset(
    [
        "hostname",
        "nvidia-smi",
        "echo",
        "true",
        "env",
        "date",
        "free",
        "lscpu",
        "mkdir",
        "rm",
        "cp",
        "mv",
        "rsync",
        "ls",
        "df",
        "cat",
        "sleep",
        "printenv",
        "module",
    ]
)
"""Programs that a script asks something of, rather than trains with."""


def runs_long(command: Command) -> bool:
    """Return whether a command is the work of the job rather than a question or a preparation."""
    if command.name in _LONG:
        names = [word.text.rsplit("/", 1)[-1].split(" ")[0] for word in command.program[1:]]
        first = next((name for name in names if name in BRIEF or _WORKER.search(name)), "")
        return first not in BRIEF
    return bool(re.match(r"python[0-9.]*$", command.name)) and not any(
        word.text == "-c" for word in command.program[1:2]
    )


def read_sbatch(text: str, path: str) -> SbatchScript:
    """Return the script; nothing in it is an error here."""
    script = SbatchScript(path, text.replace("\r\n", "\n"))
    script.dos_line = text[: text.index("\r\n")].count("\n") + 1 if "\r\n" in text else 0
    body = False
    for number, line in enumerate(script.lines, start=1):
        if line.startswith(MAGIC) and not body:
            rest = line[len(MAGIC) : MAX_LINE]
            if rest[:1] in ("", " ", "\t", "\r"):
                script.heterogeneous |= rest.split()[:1] in (["hetjob"], ["packjob"])
                script.directives.extend(_options(rest, number))
                continue
        stripped = line.strip()
        if re.match(r"#SBATCH\s", stripped + " ") and (body or not line.startswith(MAGIC)):
            script.ignored.append(number)
        body = body or (bool(stripped) and not stripped.startswith("#") and stripped != "\ufeff")
    heredocs = _heredoc_lines(script) if script.ignored else set()
    script.ignored = [number for number in script.ignored if number not in heredocs]
    return script


def _heredoc_lines(script: SbatchScript) -> set[int]:
    """Return the lines inside here-documents: a ``#SBATCH`` there belongs to a script that this one writes."""
    inside: set[int] = set()
    end = ""
    for number, line in enumerate(script.lines, start=1):
        if end:
            inside.add(number)
            end = "" if line.strip() == end else end
        elif not line.lstrip().startswith("#"):
            match = re.search(r"(?<!<)<<-?[ \t]*['\"\\]?([A-Za-z0-9_.]+)", line)
            end = match.group(1) if match else ""
    return inside


def _options(rest: str, line: int) -> list[Directive]:
    """Return the options of one line: ``--a=b``, ``--a b``, ``-n4``, ``-n 4``, flags, several of them."""
    try:
        words = deque(shlex.split(rest, comments=True) if re.search(r"['\"\\#]", rest) else rest.split())
    except ValueError:  # an unclosed quote
        words = deque(rest.split())
    found: list[Directive] = []
    while words:
        word = words.popleft()
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            takes = not equals and words and not words[0].startswith("-")
            found.append(Directive(line, long_name(name), words.popleft() if takes else value))
        elif word.startswith("-") and word[1:2] in SHORT:
            value = word[2:] or (words.popleft() if words and not words[0].startswith("-") else "")
            found.append(Directive(line, SHORT[word[1]], value))
    return found
