"""Other versions of SLURM on this machine: the lab in a root of another Debian (lab/debian-root.sh)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import slurm_lab
from slurm_lab import SCRIPTS

ROOT = Path(__file__).parents[2]
LAB = "/tmp/lab"  # inside, where /tmp is empty
COMMANDS = ("sinfo", "scontrol", "squeue", "sbatch", "scancel", "sacctmgr", "sacct")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing(with_python: bool = False) -> str | None:
    """Return what this machine lacks, as a sentence with the remedy; None when nothing is missing."""
    if reason := slurm_lab.missing():
        return reason
    if shutil.which("debootstrap", path=slurm_lab.PATH) is None:
        return "other versions of SLURM need debootstrap: run scripts/setup.sh --nightly"
    if with_python and sys.base_prefix == "/usr":
        return "this Python is the system's, which another Debian does not run: make .venv with one of pyenv or uv"
    return None


def enter(
    suite: str, how: str, *command: str, env: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Return command line and environment of debian-root.sh; checkout and Python are inside as they are here."""
    directories = {str(Path(path).resolve()) for path in (ROOT, sys.prefix, sys.base_prefix)}
    outer = sorted(d for d in directories if not any(d.startswith(f"{other}/") for other in directories))
    return (
        [str(SCRIPTS / "debian-root.sh"), how, suite, *command],
        {**slurm_lab.clean_environment(), **(env or {}), "BIND": ":".join(outer)},
    )


class OtherLab:
    """The lab of four nodes in another Debian. Its commands are scripts in `bin`, for the PATH of programs outside."""

    def __init__(self, suite: str, directory: Path) -> None:
        command, env = enter(suite, "hold")
        self.holder = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout is not None
        if not self.holder.stdout.readline():
            raise RuntimeError(f"no root of {suite}: exit {self.holder.wait()}")
        self.bin = directory / "bin"
        self.bin.mkdir()
        settings = (f"SLURM_LAB={LAB}", f"SLURM_CONF={LAB}/etc/slurm.conf", "LAB_DBD=0", f"PATH={PATH}")
        self.inside = ("nsenter", f"--target={self.holder.pid}", "--mount", "env", *settings)
        for name in COMMANDS:
            if self._run("sh", "-c", f"command -v {name}").returncode == 0:
                script = self.bin / name
                script.write_text(f'#!/bin/sh\nexec {" ".join(self.inside)} {name} "$@"\n')
                script.chmod(0o755)

    def up(self) -> None:
        """Start the lab; returns when every node is idle."""
        log = f"exec > {LAB}.log 2>&1 < /dev/null"  # daemons would hold a pipe open for ever
        done = self._run("bash", "-c", f'{log}; exec "$0" {os.getpid()}', str(SCRIPTS / "start.sh"))
        if done.returncode:
            raise RuntimeError(f"the lab did not start:\n{self._run('tail', '-n', '30', f'{LAB}.log').stdout}")

    def down(self) -> None:
        """Stop the lab; its files go with the mounts of the holder."""
        self._run("bash", "-c", 'exec "$0" > /dev/null 2>&1', str(SCRIPTS / "stop.sh"))
        assert self.holder.stdin is not None
        self.holder.stdin.close()
        self.holder.wait(timeout=60)

    def version(self) -> str:
        """Return the version of SLURM."""
        return self._run("scontrol", "--version").stdout.split()[-1]

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.inside, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
