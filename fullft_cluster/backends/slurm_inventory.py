"""Asks SLURM what the cluster has: two calls of scontrol, and two of sacctmgr where there is accounting."""

from __future__ import annotations

import grp
import os
import pwd
import shutil

from fullft_cluster.errors import Problem, SchedulerError, UsageError
from fullft_cluster.inventory import Access, Inventory, Qos
from fullft_cluster.inventory.reading import from_slurm
from fullft_cluster.inventory.slurm_text import ASSOCIATION_FIELDS, QOS_FIELDS, access, qos
from fullft_cluster.slurm_cli import call, try_call

ACCOUNTING_SECONDS = 10
"""Accounts and QOS are worth a wait, but a cluster whose database is down still plans."""


def read_slurm() -> Inventory:
    """Return the inventory of the cluster that SLURM's commands reach from here. Raises SchedulerError without one."""
    # --all: hidden partitions too. One line a node: text that 20.11 to 24.11 print alike (see inventory.slurm_text).
    nodes = call(["scontrol", "--all", "show", "node", "--oneliner"])
    partitions = call(["scontrol", "--all", "show", "partition", "--oneliner"])
    version = (try_call(["scontrol", "--version"]) or "").split()
    told, user = _accounting()
    try:
        found = from_slurm(f"{nodes}\n{partitions}", version=version[-1] if version else "", qos=told, access=user)
    except UsageError as error:
        raise SchedulerError(error.problems) from None
    if not found.pools:
        raise SchedulerError(Problem("scontrol", "the controller knows no nodes", "Is slurm.conf that of the cluster?"))
    return found


def _accounting() -> tuple[tuple[Qos, ...], Access]:
    """Return the QOS, and the accounts and QOS of the user; nothing where there is no accounting to ask."""
    groups = _groups()
    if shutil.which("sacctmgr") is None:
        return (), Access(groups=groups)
    user = pwd.getpwuid(os.getuid()).pw_name
    show = ["sacctmgr", "--parsable2", "show"]
    limits = try_call([*show, "qos", f"format={QOS_FIELDS}"], timeout_seconds=ACCOUNTING_SECONDS)
    if limits is None:  # the second question would wait as long
        return (), Access(groups=groups)
    own = try_call([*show, "assoc", f"user={user}", f"format={ASSOCIATION_FIELDS}"], timeout_seconds=ACCOUNTING_SECONDS)
    return qos(limits), access(own or "", groups)


def _groups() -> tuple[str, ...]:
    """Return the names of the user's groups."""
    names = []
    for number in sorted({os.getgid(), *os.getgroups()}):
        try:
            names.append(grp.getgrgid(number).gr_name)
        except KeyError:  # a group of a directory service that is out of reach
            continue
    return tuple(names)
