"""Become one container: the first process of its own PID and mount namespaces, in the other namespaces of a pod.

    process_kubelet_sandbox.py PLAN.json PID_WITH_THE_PODS_NAMESPACES

It ends as the container does, with 128 and the signal's number if that was killed, and both end with their parent.
The root is a tmpfs with this machine's directories bound into it, so that mount points can be made anywhere without
leaving anything behind; `/run` is empty, `/proc` the container's own. Standard library only: it runs with `-I -S`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

# <sys/mount.h>, <sys/prctl.h>
CLONE_NEWNS, CLONE_NEWPID = 0x20000, 0x20000000  # <sched.h>
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
LIBC = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    """mount(2)."""
    texts = (None if text is None else text.encode() for text in (source, target, kind))
    failed = LIBC.mount(*texts, ctypes.c_ulong(flags), None if data is None else data.encode())
    check(failed, f"mount {source} at {target}")


def bind_children(folder: str, target: str) -> None:
    """Put a tmpfs on the target that shows what the folder holds: one may make directories in it."""
    mount("tmpfs", target, "tmpfs", 0, "mode=755")
    with os.scandir(folder) as entries:
        for entry in entries:
            place = Path(target, entry.name)
            if entry.is_symlink():
                place.symlink_to(Path(entry.path).readlink())
                continue
            if entry.is_dir():
                place.mkdir()
            else:
                place.touch()
            mount(entry.path, str(place), None, MS_BIND | MS_REC)


def build(root: str, targets: list[str], reachable: list[str]) -> None:
    """Build the root: `targets` can be made in it, and `reachable` is so for every user."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    bind_children("/", root)
    mount("tmpfs", f"{root}/run", "tmpfs", 0, "mode=755")
    mount("proc", f"{root}/proc", "proc")
    spread = {str(folder) for path in reachable for folder in Path(path).parents if not folder.stat().st_mode & 1}
    for target in targets:
        folder = next(folder for folder in (Path(target), *Path(target).parents) if folder.exists())
        if str(folder) != target and folder.parts[:2] not in (("/",), ("/", "run")):
            spread.add(str(folder))
    for place in sorted(spread, key=len):
        if not any(place == other or place.startswith(f"{other}/") for other in targets):
            bind_children(place, root + place)


def enter(pid: str) -> int:
    """Enter the pod's namespaces and make new ones; return 0 in the first process there, else its PID."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for name in ("net", "uts", "ipc"):
        namespace = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY)
        check(LIBC.setns(namespace, 0), f"setns {name}")
        os.close(namespace)
    check(LIBC.unshare(CLONE_NEWNS | CLONE_NEWPID), "unshare")
    return os.fork()


def check(failed: int, what: str) -> None:
    """Raise OSError if a function of libc says that it has failed."""
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def become(plan_path: str) -> None:
    """Mount, change to the container's user and become its command. 127 if there is no such command, else 128."""
    plan = json.loads(Path(plan_path).read_text())
    root = plan["root"]
    volumes = sorted(plan["mounts"], key=lambda volume: len(volume["target"]))
    build(root, [volume["target"] for volume in volumes], plan["reachable"])
    for volume in volumes:
        target = root + volume["target"]
        if not Path(target).exists():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(target).touch() if Path(volume["source"]).is_file() else Path(target).mkdir()
        mount(volume["source"], target, None, MS_BIND | MS_REC)
        if volume["read_only"]:
            mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY)
    os.chroot(root)
    os.chdir(plan["directory"])
    os.setpriority(os.PRIO_PROCESS, 0, 0)  # the control plane runs at a higher one
    os.setgroups(plan["groups"])
    os.setgid(plan["group"])
    os.setuid(plan["user"])
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of the user has cleared it
    if not plan["escalation"]:
        LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and that is inherited
    os.write(plan["ready"], b"1")
    os.close(plan["ready"])
    os.execvpe(plan["command"][0], plan["command"], plan["env"])


def main(plan_path: str, pid: str) -> int:
    """Run the container; return its exit code."""
    try:
        child = enter(pid)
        if child == 0:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            become(plan_path)
    except OSError as error:
        print(f"container could not be started: {error}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 128
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
