"""The pods' network: each has a network namespace, an address and a name, and all reach the API server's service.

A bridge in a namespace of its own joins them, so nothing of this machine's network is touched, and two pods may listen
on one port.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from kube_client import Object

SERVICE_ADDRESS = "10.96.0.1"  # of the service "kubernetes": the first one in the range of services
CHILD = ("setpriv", "--pdeathsig", "KILL", "--")
CLONE_NEWNET = 0x40000000  # <sched.h>
LIBC = ctypes.CDLL(None, use_errno=True)


class Network:
    """The bridge, and the way from it to an API server on this machine's loopback."""

    def __init__(self, api: tuple[str, int]) -> None:
        self.api = api
        self.bridge = pause(["--net"], "bridge")
        self._numbers = itertools.count(2)
        self._ports: dict[str, str] = {}
        _ip(
            self.bridge.pid,
            "link set lo up",
            # An address of its own: else it takes the lowest of its ports', which changes as pods come, and everybody's
            # connections through it stand still until the neighbours have asked again.
            "link add pods address 02:00:0a:f4:00:01 type bridge",
            "address add 10.244.0.1/16 dev pods",
            f"address add {SERVICE_ADDRESS}/32 dev pods",
            "link set pods up",
        )
        listener = _listen(self.bridge.pid, (SERVICE_ADDRESS, 443))
        threading.Thread(target=self._forward, args=(listener,), daemon=True).start()

    def join(self, pid: int) -> str:
        """Connect the network namespace of that process; return its address."""
        number = next(self._numbers)
        address, port = f"10.244.{number // 250}.{number % 250 + 2}", f"veth{number}"
        _ip(self.bridge.pid, f"link add {port} type veth peer name eth0 netns {pid}", f"link set {port} master pods up")
        _ip(
            pid,
            "link set lo up",
            f"address add {address}/16 dev eth0",
            "link set eth0 up",
            "route add default via 10.244.0.1",
        )
        self._ports[address] = port
        return address

    def plug(self, address: str, *, connected: bool) -> None:
        """Pull the cable of a pod, or put it in again."""
        _ip(self.bridge.pid, f"link set {self._ports[address]} {'up' if connected else 'down'}")

    def _forward(self, listener: socket.socket) -> None:
        while True:
            inner, _ = listener.accept()
            try:
                outer = socket.create_connection(self.api, timeout=10)
            except OSError:  # the API server is away
                inner.close()
                continue
            outer.settimeout(None)
            for pair in ((inner, outer), (outer, inner)):
                threading.Thread(target=_copy, args=pair, daemon=True).start()


def pause(namespaces: list[str], hostname: str) -> subprocess.Popen[bytes]:
    """Return a process that does nothing but hold new namespaces; they are there when this returns."""
    script = ('hostname "$0"; ' if "--uts" in namespaces else "") + "echo; exec sleep infinity"
    command = [*CHILD, "unshare", *namespaces, "sh", "-c", script, hostname]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RuntimeError(f"no namespaces {namespaces}: root is needed")
    return process


def _ip(pid: int, *lines: str) -> None:
    command = ["nsenter", f"--net=/proc/{pid}/ns/net", shutil.which("ip") or "/sbin/ip", "-batch", "-"]
    subprocess.run(command, input="\n".join(lines) + "\n", text=True, check=True, capture_output=True)


def _listen(pid: int, address: tuple[str, int]) -> socket.socket:
    """Return a socket that listens in the namespace of that process: a socket stays where it was made."""
    made: list[socket.socket] = []

    def make() -> None:
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        if LIBC.setns(namespace, CLONE_NEWNET):  # of this thread alone
            raise OSError(ctypes.get_errno(), "setns")
        made.append(socket.create_server(address))
        os.close(namespace)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


# --- names
class Named:
    """What the names of a pod follow from."""

    def __init__(self, pod: Object, address: str, *, ready: bool) -> None:
        self.meta, self.spec, self.address, self.ready = pod["metadata"], pod["spec"], address, ready
        self.hostname: str = pod["spec"].get("hostname") or pod["metadata"]["name"][:63]
        self.ending = "deletionTimestamp" in pod["metadata"]


def hosts(pod: Named, pods: Iterable[Named], services: Iterable[Object]) -> str:
    """Return /etc/hosts of a pod: its own name and localhost, and what the cluster's DNS would resolve for it.

    https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/
    """
    lines = ["127.0.0.1 localhost", f"{pod.address} {pod.hostname}"]
    newest_first = sorted(pods, key=lambda other: str(other.meta["creationTimestamp"]), reverse=True)
    for service in services:
        for other in newest_first:
            if _answers(service, other):
                names = list(_names(service, other, here=service["metadata"]["namespace"] == pod.meta["namespace"]))
                lines.append(f"{other.address} {' '.join(names)}")
    lines.append(f"{SERVICE_ADDRESS} kubernetes.default.svc kubernetes.default.svc.cluster.local")
    return "\n".join(lines) + "\n"


def _answers(service: Object, pod: Named) -> bool:
    meta, spec = service["metadata"], service["spec"]
    wanted = spec.get("selector") or {}
    chosen = meta["namespace"] == pod.meta["namespace"] and wanted.items() <= pod.meta.get("labels", {}).items()
    serves = (pod.ready and not pod.ending) or spec.get("publishNotReadyAddresses", False)
    return bool(wanted) and chosen and serves


def _names(service: Object, pod: Named, *, here: bool) -> Iterator[str]:
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    bases = [name]
    if service["spec"].get("clusterIP") == "None" and pod.spec.get("subdomain") == name:
        bases.insert(0, f"{pod.hostname}.{name}")
    for base in bases:
        yield from [base] if here else []
        yield from (f"{base}.{namespace}{end}" for end in ("", ".svc", ".svc.cluster.local"))


def write_in_place(path: Path, text: str) -> None:
    """Change a file that is bound into containers: they have its inode."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.write(text.encode())
        file.truncate()
