"""A SLURM cluster of four nodes on this machine, for tests: real daemons, fake GPUs, nodes that can lose power."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

SCRIPTS = Path(__file__).parent / "lab"
NODES = ("node1", "node2", "node3", "node4")
REQUIRED = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged", "unshare", "nsenter", "ip")
ACCOUNTING = ("slurmdbd", "sacct", "sacctmgr", "mariadbd", "mariadb-install-db", "my_print_defaults")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NAMESPACES = ("unshare", "--net", "--uts", "--pid", "--mount", "--fork", "--mount-proc", "true")


def missing() -> str | None:
    """Return what this machine lacks for the lab, as a sentence with the remedy; None when nothing is missing."""
    if os.geteuid() != 0:
        return "the SLURM lab needs root (network namespaces)"
    absent = [name for name in REQUIRED if shutil.which(name, path=PATH) is None]
    if absent:
        return f"the SLURM lab needs {', '.join(absent)}: run scripts/setup.sh --slurm"
    if subprocess.run(NAMESPACES, env={"PATH": PATH}, capture_output=True, check=False).returncode:
        return f"the SLURM lab needs the right to make namespaces: `{' '.join(NAMESPACES)}` fails"
    return None


def clean_environment() -> dict[str, str]:
    """Return the environment without what would lead SLURM's commands to another cluster or job."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "PMI"))}


T = TypeVar("T")


def wait_until(what: str, probe: Callable[[], T | None], seconds: float, detail: Callable[[], str] = str) -> T:
    """Return the first true value of `probe`; raise TimeoutError, with `detail`, when none comes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := probe():
            return value
        time.sleep(0.2)
    raise TimeoutError(f"waited {seconds:.0f} s for {what}. {detail()}")


class Lab:
    """The running cluster. `env` finds it: every SLURM command started with that environment talks to it."""

    def __init__(self) -> None:
        # Not pytest's own temporary folder: unix sockets lie below, and their path must be short.
        self.directory = Path(tempfile.mkdtemp(prefix="lab"))
        self.directory.chmod(0o755)
        accounting = all(shutil.which(name, path=PATH) for name in ACCOUNTING)
        self.accounting = accounting
        self.env: dict[str, str] = {
            **clean_environment(),
            "PATH": PATH,
            "SLURM_LAB": str(self.directory),
            "SLURM_CONF": str(self.directory / "etc" / "slurm.conf"),
            "LAB_DBD": "1" if accounting else "0",
        }
        self.crashed: set[str] = set()

    # --- the cluster
    def _script(self, name: str, *arguments: str) -> None:
        # Into a file: daemons would hold a pipe open for ever.
        log = self.directory / "log" / "scripts.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as out:
            command = [str(SCRIPTS / name), *arguments]
            done = subprocess.run(command, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")

    def up(self) -> None:
        """Start the cluster; returns when every node is idle."""
        self._script("start.sh", str(os.getpid()))

    def down(self) -> None:
        """Stop the cluster and delete its files."""
        self._script("stop.sh")
        shutil.rmtree(self.directory, ignore_errors=True)

    def crash(self, node: str) -> None:
        """Take a node's power away: everything on it dies at once, and SLURM has to find out by itself."""
        self._script("node.sh", "crash", node)
        self.crashed.add(node)

    def down_at_once(self, node: str, reason: str) -> None:
        """Tell SLURM that a node is down, as an operator may, instead of waiting until it finds out (15 s and more)."""
        self.run("scontrol", "update", f"nodename={node}", "state=down", f"reason={reason}")

    def start(self, node: str) -> None:
        """Give a node its power back."""
        self._script("node.sh", "start", node)
        self.crashed.discard(node)

    def reset(self) -> None:
        """Between two tests: no jobs, every node idle."""
        self.run("scancel", "--user=root")
        for node in sorted(self.crashed):
            self.start(node)
        try:
            wait_until("the jobs to end", lambda: not self.run("squeue", "-h"), 45)
        except TimeoutError:
            self.run("scancel", "--user=root", "--signal=KILL")

        def idle() -> bool:
            states = dict(
                line.split() for line in self.run("sinfo", "-h", "-N", "-p", "gpu", "-o", "%N %t").splitlines()
            )
            for node in (node for node, state in states.items() if re.match("down|drain", state)):
                self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
            return all(states.get(node) == "idle" for node in NODES)

        wait_until("every node to be idle", idle, 90, lambda: self.run("sinfo", "-N", "-l"))

    # --- its commands
    def run(self, *command: str, check: bool = True, stdin: str = "", strip: bool = True) -> str:
        """Run a command of SLURM; return its stdout, without the blanks around it unless `strip` is false."""
        done = subprocess.run(command, env=self.env, input=stdin, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip() if strip else done.stdout

    def sbatch(self, *options: str, script: str) -> str:
        """Submit a script by stdin; return the job's id."""
        return self.run("sbatch", "--parsable", *options, stdin=script)

    def job(self, job_id: str) -> Mapping[str, str]:
        """Return a job's fields as `scontrol show job` names them (JobState, Restarts, BatchHost, NodeList, ...)."""
        return dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", self.run("scontrol", "-o", "show", "job", job_id)))

    def wait(self, job_id: str, *states: str, seconds: float = 60) -> Mapping[str, str]:
        """Wait until the job is in one of the states (default: it has ended), and return its fields."""
        wanted = states or ENDED

        def reached() -> Mapping[str, str] | None:
            job = self.job(job_id)
            return job if job.get("JobState") in wanted else None

        return wait_until(f"job {job_id} to be {' or '.join(wanted)}", reached, seconds, lambda: self.show(job_id))

    def nodes_of(self, job_id: str) -> list[str]:
        """Return the names of the job's nodes, in order."""
        return self.run("scontrol", "show", "hostnames", self.job(job_id)["NodeList"]).split()

    def show(self, job_id: str) -> str:
        """Return what helps to find out why a test failed."""
        log = self.directory / "log" / "slurmctld.log"
        return f"\n{self.run('scontrol', 'show', 'job', job_id, check=False)}\n{log.read_text()[-3000:]}"
