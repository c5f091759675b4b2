"""A kubelet for all nodes of a test cluster that runs the containers of bound pods as local processes.

    process_kubelet.py KUBECONFIG STATE_DIRECTORY CERTIFICATE_DIRECTORY

Images are not pulled: commands are run as given, with this machine's files. Each container has PID and mount
namespaces, each pod a network namespace, an address and a name. Commands come as JSON lines on stdin, each answered by
a line; the end of stdin is the end of the kubelet and of all that it runs. Standard library only; needs root,
util-linux and iproute2.

Not here: probes, hooks, `kubectl exec`, limits of CPU and memory, updates of mounted ConfigMaps, renewal of tokens.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from kube_client import STRATEGIC, ApiError, Client, Mirror, Object
from process_kubelet_container import Container, now
from process_kubelet_logs import Log
from process_kubelet_network import Network, hosts, write_in_place
from process_kubelet_node import Node
from process_kubelet_pod import Machine, Pod
from process_kubelet_volumes import provision, reclaim

ROOT = Path(__file__).parents[2]
GRACE_OF_A_FORCED_END = 1.0  # seconds, of a pod whose object is gone already
UNREACHABLE = (OSError, http.client.HTTPException)


class Kubelet:
    """All nodes and pods. Three threads: one follows the pods, one reports, the main one sends heartbeats."""

    def __init__(self, client: Client, state: Path, certificate: Path) -> None:
        reachable = (os.path.realpath(sys.executable), *(f"{top}/x" for top in (sys.prefix, sys.base_prefix, ROOT)))
        network = Network((client.host, client.port))
        self.client, self.certificate = client, certificate
        self.machine = Machine(client, network, state, reachable)
        self.nodes: dict[str, Node] = {}
        self.pods: dict[str, Pod] = {}
        self.purged: set[str] = set()  # namespaces whose pods get no grace
        self._lock = threading.RLock()
        self._changed: collections.OrderedDict[str, Pod] = collections.OrderedDict()
        self._events: collections.deque[tuple[Pod, str, str]] = collections.deque(maxlen=1000)
        self._work = threading.Condition()
        self.seen = Mirror(client, "/api/v1/pods", self.sync)
        self.services = Mirror(client, "/api/v1/services", self.name)
        self.claims = Mirror(client, "/api/v1/persistentvolumeclaims", self.store)
        self.stored = Mirror(client, "/api/v1/persistentvolumes", self.store)

    # --- following the API
    def sync(self) -> None:
        """Start, stop and forget pods as their objects say."""
        found = self.seen.objects()
        with self._lock:
            for uid, item in found.items():
                node = self.nodes.get(item["spec"].get("nodeName", ""))
                if node is None or node.lost:
                    continue
                if uid in self.pods:
                    self._follow(self.pods[uid], item)
                elif (
                    item["status"].get("phase") not in ("Succeeded", "Failed")
                    or "deletionTimestamp" in item["metadata"]
                ):
                    self._take(item, node)
            for uid in self.pods.keys() - found.keys():
                if not self.nodes[self.pods[uid].node].lost:
                    self.pods.pop(uid).stop(GRACE_OF_A_FORCED_END)
        self.name()

    def _take(self, item: Object, node: Node) -> None:
        pod = Pod(self.machine, self, item, node.address)
        self.pods[pod.uid] = pod
        ran = bool(item["status"].get("containerStatuses"))  # before the node was lost
        pod.deleted = "deletionTimestamp" in item["metadata"]
        if pod.deleted or pod.namespace in self.purged or (ran and pod.policy == "Never"):
            pod.end_unseen()
            return
        pod.begin()

    def _follow(self, pod: Pod, item: Object) -> None:
        pod.pod = item
        if "deletionTimestamp" not in item["metadata"]:
            return
        grace = 0 if pod.namespace in self.purged else item["metadata"].get("deletionGracePeriodSeconds", 30)
        if not pod.deleted or grace < pod.grace:
            pod.deleted, pod.grace = True, grace
            pod.stop(grace)
            self.changed(pod)

    def name(self) -> None:
        """Write what every pod's names resolve to."""
        with self._lock:
            named = {pod.uid: pod.named() for pod in self.pods.values() if pod.address and not pod.over.is_set()}
            services = list(self.services.objects().values())
            for uid, each in named.items():
                text = hosts(each, named.values(), services)
                pod = self.pods[uid]
                if text != pod.hosts.read_text():
                    write_in_place(pod.hosts, text)

    def store(self) -> None:
        """Give claims their volumes, and take back those whose claims are gone."""
        with contextlib.suppress(ApiError, *UNREACHABLE):  # the next change or beat tries again
            for claim in self.claims.objects().values():
                provision(self.client, self.machine.state / "claims", claim)
            for volume in self.stored.objects().values():
                reclaim(self.client, volume)

    # --- telling the API
    def changed(self, pod: Pod) -> None:
        """Report it soon, and again until the API server has heard it."""
        with self._work:
            self._changed[pod.uid] = pod
            self._work.notify()

    def event(self, pod: Pod, reason: str, message: str) -> None:
        """Write an event, if the API server can be reached."""
        with self._work:
            self._events.append((pod, reason, message))
            self._work.notify()

    def report(self) -> None:
        """Report what has changed, for ever."""
        while True:
            with self._work:
                while not self._changed and not self._events:
                    self._work.wait()
                pod = self._changed.popitem(last=False)[1] if self._changed else None
                event = self._events.popleft() if self._events else None
            if pod is not None and not pod.lost and not self.nodes[pod.node].lost:
                try:
                    self._report(pod)
                except UNREACHABLE:
                    self.changed(pod)
                    time.sleep(0.2)
                except ApiError as error:
                    print(error, file=sys.stderr, flush=True)
            if event is not None:
                with contextlib.suppress(ApiError, *UNREACHABLE):
                    self._write(*event)

    def _report(self, pod: Pod) -> None:
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        over = pod.over.is_set()
        self.name()
        with _gone_is_well():
            self.client.json(
                "PATCH", f"{path}/status", {"metadata": {"uid": pod.uid}, "status": pod.status()}, STRATEGIC
            )
            if over and pod.deleted:
                options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}}
                self.client.json("DELETE", path, options)  # in the body: with one the server ignores the query

    def _write(self, pod: Pod, reason: str, message: str) -> None:
        subject = {"apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid}
        event: dict[str, Any] = {
            "metadata": {"generateName": f"{pod.name}."[:200], "namespace": pod.namespace},
            "involvedObject": subject,
            "type": "Normal" if reason == "Killing" else "Warning",
            "reason": reason,
            "message": message[:1000],
            "source": {"component": "kubelet", "host": pod.node},
        }
        self.client.json(
            "POST",
            f"/api/v1/namespaces/{pod.namespace}/events",
            event | dict.fromkeys(("firstTimestamp", "lastTimestamp"), now()),
        )

    # --- commands
    def add(self, name: str, gpus: int, labels: dict[str, str]) -> None:
        """Add a node, which is ready at once."""
        with self._lock:
            address = f"127.0.0.{10 + len(self.nodes)}"
            self.nodes[name] = Node(name, address, gpus, labels)
            self.nodes[name].begin(self.client, self.certificate, self.log)
        self.sync()

    def lose(self, name: str, *, kill: bool = True) -> None:
        """Lose a node at once: it says nothing any more. Its processes die, or go on, cut off."""
        with self._lock:
            self.nodes[name].end()
            for uid, pod in list(self.pods.items()):
                if pod.node == name:
                    pod.lost = kill
                    if kill:
                        self.pods.pop(uid).kill()
                    elif pod.address and not pod.over.is_set():
                        self.machine.network.plug(pod.address, connected=False)

    def bring_back(self, name: str) -> None:
        """Bring a node back, after a reboot or with what still runs there."""
        with self._lock:
            for pod in self.pods.values():
                if pod.node == name and pod.address and not pod.over.is_set():
                    self.machine.network.plug(pod.address, connected=True)
            self.nodes[name].begin(self.client, self.certificate, self.log)
            for pod in self.pods.values():
                self.changed(pod)
        self.sync()

    def mend(self) -> None:
        """Bring back every node that was lost, or whose object was deleted."""
        for name in list(self.nodes):
            self.bring_back(name)

    def purge(self, namespace: str) -> None:
        """End all pods of a namespace without grace, and run none of it any more."""
        with self._lock:
            self.purged.add(namespace)
            ended = [pod for pod in self.pods.values() if pod.namespace == namespace]
            for pod in ended:
                pod.kill()
        for pod in ended:
            pod.over.wait()

    def kill(self, namespace: str, pod: str, container: str | None, because: str) -> None:
        """Kill a container (the first one) as the kernel does that is out of memory."""
        self._find(namespace, pod, container)[1].kill(because)

    def fail(self, namespace: str, pod: str, reason: str, message: str, grace: float) -> None:
        """End a pod as a node does that is short of something."""
        self._find(namespace, pod, None)[0].fail(reason, message, grace)

    def _find(self, namespace: str, name: str, container: str | None) -> tuple[Pod, Container]:
        with self._lock:
            pods = [pod for pod in self.pods.values() if (pod.namespace, pod.name) == (namespace, name)]
        for pod in reversed(pods):
            for each in [*pod.main, *pod.init]:
                if container in (None, each.name):
                    return pod, each
        raise LookupError(f"no such container here: {namespace}/{name} {container or ''}")

    def log(self, namespace: str, name: str, container: str, previous: bool) -> Log | None:
        """Return the log of a container's life."""
        try:
            pod, found = self._find(namespace, name, container)
        except LookupError:
            return None
        if found.log is None:
            return None
        number = found.restarts - 1 if previous else int(found.log.stem)
        path = found.log.with_name(f"{number}.log")
        return Log(path, lambda: found.log == path and "running" in found.state and not pod.lost)

    def obey(self) -> None:
        """Carry out commands from stdin until it ends."""
        for line in sys.stdin:
            command = json.loads(line)
            try:
                getattr(self, command.pop("do"))(**command)
                answer: Object = {"ok": True}
            except Exception as error:  # told to whoever asked
                answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), flush=True)
        os._exit(0)  # what it runs dies with it


@contextlib.contextmanager
def _gone_is_well() -> Any:
    try:
        yield
    except ApiError as error:
        if error.status not in (http.client.NOT_FOUND, http.client.CONFLICT):
            raise


def main(kubeconfig: str, state: str, certificate: str) -> None:
    kubelet = Kubelet(Client.of(Path(kubeconfig)), Path(state), Path(certificate))
    for thread in (kubelet.seen, kubelet.services, kubelet.claims, kubelet.stored):
        thread.start()
    for action in (kubelet.report, kubelet.obey):
        threading.Thread(target=action, daemon=True).start()
    beat = 0
    while True:
        for node in list(kubelet.nodes.values()):
            with contextlib.suppress(ApiError, *UNREACHABLE):
                node.beat(kubelet.client, full=beat % 3 == 0)
        if beat % 5 == 0:
            kubelet.store()
        beat += 1
        time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
