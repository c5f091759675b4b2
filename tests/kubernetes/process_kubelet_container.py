"""One container of a pod: a process in namespaces of its own, its log, and what its status says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from kube_client import Object
from process_kubelet_source import Source, SourceError, expand
from process_kubelet_volumes import Volumes

SANDBOX = Path(__file__).with_name("process_kubelet_sandbox.py")
TOOLS = Path(__file__).with_name("process_kubelet_tools")  # what images have and this machine may lack
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def now() -> str:
    """Return the time as the API has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Place(NamedTuple):
    """Where the containers of a pod run."""

    directory: Path
    hosts: Path
    volumes: Volumes
    source: Source
    pause: int  # the process that holds the pod's network and name
    reachable: tuple[str, ...]  # what the image has, whoever its user is


class Container:
    """One container. `state`, `last`, `restarts` and `ready` are its status."""

    def __init__(self, spec: Object) -> None:
        self.spec, self.name = spec, str(spec["name"])
        self.state: Object = {"waiting": {"reason": "PodInitializing"}}
        self.last: Object = {}
        self.restarts = 0
        self.code: int | None = None  # of its last end
        self.killed_because: str | None = None  # OOMKilled, say
        self.process: subprocess.Popen[bytes] | None = None
        self.log: Path | None = None
        self._lock = threading.Lock()

    def status(self, *, init: bool = False) -> Object:
        """Return its status as the API has it."""
        running = "running" in self.state
        ended_well = self.code == 0 and "terminated" in self.state
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": "",
            "containerID": f"process://{self.process.pid}" if self.process else "",
            "ready": ended_well if init else running,
            "started": running,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last,
        }

    def waits(self, reason: str, message: str = "") -> None:
        """Say that it waits."""
        self.state = {"waiting": {"reason": reason, "message": message}}

    # --- running
    def start(self, place: Place) -> None:
        """Start it; SourceError if something that it refers to is missing."""
        env = self._environment(place.source)
        directory = place.directory / "containers" / self.name
        root = directory / "root"
        root.mkdir(parents=True, exist_ok=True)
        self.log = directory / f"{self.restarts}.log"
        reader, writer = os.pipe()
        plan = directory / "plan.json"
        plan.touch(mode=0o600)
        plan.write_text(json.dumps(self._plan(place, env) | {"root": str(root), "ready": writer}))
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(SANDBOX), str(plan), str(place.pause)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(writer,),
            cwd="/",
        )
        os.close(writer)
        with os.fdopen(reader, "rb") as ready:
            ready.read(1)  # it is about to become its command, or has failed
        with self._lock:
            self.process = process
            self.killed_because = None
            self.state = {"running": {"startedAt": now()}}

    def wait(self) -> None:
        """Write its log until it ends, and note how it has ended."""
        assert self.process is not None and self.process.stdout is not None and self.log is not None
        with self.log.open("ab", buffering=0) as log:
            for line in self.process.stdout:
                stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
                log.write(stamp.encode() + b" " + line.rstrip(b"\n") + b"\n")
        code = self.process.wait()
        with self._lock:
            self.code = 128 - code if code < 0 else code
            reason = self.killed_because or ("Error" if self.code else "Completed")
            ended = {"exitCode": self.code, "reason": reason, "finishedAt": now()}
            self.state = {"terminated": ended | {"startedAt": self.state["running"]["startedAt"]}}

    def signal(self, number: int, because: str | None = None) -> None:
        """Send its first process a signal; with SIGKILL all of its processes end."""
        with self._lock, contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if self.process is None or "running" not in self.state:
                return
            self.killed_because = because
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            for pid in children or [str(self.process.pid)]:
                os.kill(int(pid), number)

    def kill(self, because: str | None = None) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL, because)

    # --- what it is started with
    def _environment(self, source: Source) -> dict[str, str]:
        security = self._security(source.pod)
        base = {
            "PATH": f"{TOOLS}:{PATH}",
            "HOME": "/" if security.get("runAsUser") else "/root",
            "HOSTNAME": source.pod["spec"].get("hostname") or source.pod["metadata"]["name"],
            "KUBERNETES_SERVICE_HOST": source.live["apiIP"],
            "KUBERNETES_SERVICE_PORT": "443",
        }
        return base | source.environment(self.spec)

    def _security(self, pod: Object) -> dict[str, Any]:
        return {**pod["spec"].get("securityContext", {}), **self.spec.get("securityContext", {})}

    def _plan(self, place: Place, env: dict[str, str]) -> Object:
        pod, security = place.source.pod, self._security(place.source.pod)
        user = security.get("runAsUser", 0)
        if security.get("runAsNonRoot") and user == 0:
            raise SourceError("container has runAsNonRoot and image will run as root")
        groups = [*security.get("supplementalGroups", []), *([security["fsGroup"]] if "fsGroup" in security else [])]
        command = [expand(word, env) for word in [*self.spec.get("command", []), *self.spec.get("args", [])]]
        if not command:
            raise SourceError("no command specified: images are not known here")
        return {
            "mounts": self._mounts(place, pod, env),
            "reachable": place.reachable,
            "directory": self.spec.get("workingDir", "/"),
            "user": user,
            "group": security.get("runAsGroup", 0),
            "groups": groups,
            "escalation": security.get("allowPrivilegeEscalation", True),
            "command": command,
            "env": env,
        }

    def _mounts(self, place: Place, pod: Object, env: dict[str, str]) -> list[Object]:
        kinds = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        found = [_bound(place.hosts, "/etc/hosts"), _bound(place.volumes.paths["/dev/shm"], "/dev/shm")]
        found.append(_bound(TOOLS / "nsswitch.conf", "/etc/nsswitch.conf", read_only=True))
        for mount in self.spec.get("volumeMounts", []):
            source = place.volumes.paths[mount["name"]]
            below = expand(mount["subPathExpr"], env) if "subPathExpr" in mount else mount.get("subPath", "")
            if below:
                source = source / below
                if not source.exists():
                    source.mkdir(parents=True)
            written = not {"configMap", "secret", "downwardAPI", "projected"} & kinds[mount["name"]].keys()
            found.append(_bound(source, mount["mountPath"], read_only=mount.get("readOnly", False) or not written))
        return [
            mount for mount in found if mount["target"] not in {later["target"] for later in found if later != mount}
        ]


def _bound(source: Path, target: str, *, read_only: bool = False) -> Object:
    # As seen from outside: /var/run is /run.
    return {"source": str(source), "target": os.path.realpath(target), "read_only": read_only}
