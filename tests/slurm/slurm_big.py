"""A SLURM controller with 10,000 nodes that nothing is behind: what an inventory of a large cluster reads, for real."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from slurm_lab import PATH, SCRIPTS, clean_environment, wait_until

NODES = {"a100": 6000, "h100": 3000, "cpu": 1000}
# Of the a100 nodes, as an operator and users leave them:
DRAINED, DOWN, ALLOCATED, MIXED = "a[00011-00020]", "a[00021-00030]", "a[00101-00300]", "a[00301-00310]"
# The job on MIXED holds part of each of its nodes.
JOBS = {ALLOCATED: ("--exclusive",), MIXED: ("--gpus-per-node=a100:4", "--cpus-per-task=48", "--mem=100G")}
# In the foreground, and dead when pytest is: nothing is left behind even by a kill -9.
CHILD = ("setpriv", "--pdeathsig", "KILL", "--")


class BigLab:
    """The running controller, on loopback. `env` finds it."""

    def __init__(self) -> None:
        # Not pytest's own temporary folder: a unix socket lies below, and its path must be short.
        self.directory = Path(tempfile.mkdtemp(prefix="big"))
        self.directory.chmod(0o755)
        self.conf = self.directory / "slurm.conf"
        self.env = {
            **clean_environment(),
            "PATH": PATH,
            "SLURM_CONF": str(self.conf),
        }
        # It stands for the nodes: takes what the controller sends and stays silent, so that none is "not responding".
        self.silent = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.children: list[subprocess.Popen[bytes]] = []

    def up(self) -> None:
        """Start munged and slurmctld; returns when the nodes are in the states that the constants above say."""
        munge = self.directory / "munge"
        munge.mkdir()
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o600)
        self._configure()
        files = {name: f"--{name}-file={munge / name}" for name in ("key", "seed", "pid", "log")}
        self._start("munged", "--foreground", *files.values(), f"--socket={munge / 'sock'}")
        wait_until("munged", (munge / "sock").exists, 20, self._log)
        # slurmctld listens on the address of its host's name: one of its own, so on loopback alone
        script = 'hostname ctl; mount --bind "$0" /etc/hosts; exec slurmctld -D -c'
        self._start("unshare", "--uts", "--mount", "bash", "-c", script, str(self.directory / "hosts"))
        wait_until("slurmctld", self._answers, 60, self._log)
        self.run("scontrol", "update", f"nodename={DRAINED}", "state=drain", "reason=disk")
        self.run("scontrol", "update", f"nodename={DOWN}", "state=down", "reason=power")
        for nodes, options in JOBS.items():
            count = self.run("scontrol", "show", "hostnames", nodes).count("\n") + 1
            where = (f"--nodelist={nodes}", f"--nodes={count}", "--ntasks-per-node=1", "--output=/dev/null")
            self.run("sbatch", *where, *options, stdin="#!/bin/bash\nsleep 600\n")
        wait_until("the jobs' nodes", lambda: not self.run("squeue", "-h", "-t", "PENDING"), 60, self._log)

    def down(self) -> None:
        """Stop the controller and delete its files."""
        for child in reversed(self.children):
            child.kill()  # nothing of its state is wanted, and it would wait for the nodes' answers
            child.wait()
        self.silent.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def run(self, *command: str, check: bool = True, stdin: str = "") -> str:
        """Run a command of SLURM; return its stdout without the blanks around it."""
        done = subprocess.run(command, env=self.env, input=stdin, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def _answers(self) -> bool:
        if self.children[-1].poll() is not None:
            raise RuntimeError(f"slurmctld has ended: {self._log()}")
        return " UP" in self.run("scontrol", "ping", check=False)

    def _configure(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        values = {"LAB": self.directory, "PORT": port, "SILENT_PORT": self.silent.getsockname()[1]}
        text = (SCRIPTS / "big.conf.in").read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", str(value))
        self.conf.write_text(text)
        (self.directory / "gres.conf").write_text("AutoDetect=off\n")
        (self.directory / "hosts").write_text("127.0.0.1 localhost ctl\n")
        (self.directory / "state").mkdir()

    def _start(self, *command: str) -> None:
        with (self.directory / "daemons.log").open("ab") as log:
            child = subprocess.Popen(
                [*CHILD, *command], env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory
            )
        self.children.append(child)

    def _log(self) -> str:
        return (self.directory / "daemons.log").read_text()[-3000:]
