"""One bound pod: its init containers, its containers and their restarts, its end."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from kube_client import Client, Object
from process_kubelet_container import Container, Place, now
from process_kubelet_network import SERVICE_ADDRESS, Named, Network, pause, write_in_place
from process_kubelet_source import Source, SourceError
from process_kubelet_volumes import Volumes

HELD = 0.5  # seconds until something that was missing is looked for again
LONGEST_BACKOFF = 5.0  # seconds; a kubelet's is 300


class Machine(NamedTuple):
    """What the pods of all nodes have in common."""

    client: Client
    network: Network
    state: Path
    reachable: tuple[str, ...]


class Reporter(Protocol):
    """Who is told that the pod's status has changed, and what has happened to it."""

    def changed(self, pod: Pod) -> None: ...

    def event(self, pod: Pod, reason: str, message: str) -> None: ...


class Pod:
    """A thread that runs the pod. `status()` is what the API should know of it; `over` is set after its end."""

    def __init__(self, machine: Machine, reporter: Reporter, pod: Object, node_address: str) -> None:
        self.machine, self.reporter, self.pod = machine, reporter, pod
        meta, spec = pod["metadata"], pod["spec"]
        self.uid, self.namespace, self.name = str(meta["uid"]), str(meta["namespace"]), str(meta["name"])
        self.node, self.policy = str(spec["nodeName"]), spec.get("restartPolicy", "Always")
        self.init = [Container(container) for container in spec.get("initContainers", [])]
        self.main = [Container(container) for container in spec["containers"]]
        self.node_address, self.address, self.began = node_address, "", now()
        self.deleted = False  # in the API
        self.grace: float = float("inf")  # the shortest that it was given
        self.lost = False  # with its node
        self.failed: Object | None = None  # reason and message of an end that the kubelet has decided
        self.over = threading.Event()
        self._conditions: dict[str, Object] = {}
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.directory = machine.state / "pods" / f"{self.namespace}_{self.name}_{self.uid[:8]}"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.hosts = self.directory / "hosts"
        self.hosts.touch()
        self._pause: subprocess.Popen[bytes] | None = None
        for container in self.main if not self.init else []:
            container.waits("ContainerCreating")

    def begin(self) -> None:
        """Start it, in a thread that lives as long as it does: the kernel ends processes with the thread."""
        threading.Thread(target=self._run, name=f"{self.namespace}/{self.name}", daemon=True).start()

    def end_unseen(self) -> None:
        """Say that it has ended while nobody looked: its node was lost, and no process of it is left."""
        for container in self.main:
            container.code = 137
            container.state = {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown", "finishedAt": now()}}
        self._stopping.set()
        self.over.set()
        self.reporter.changed(self)

    def named(self) -> Named:
        """Return what its names follow from."""
        return Named(self.pod, self.address, ready=all("running" in container.state for container in self.main))

    # --- ends that come from outside
    def stop(self, grace: float) -> None:
        """SIGTERM, and SIGKILL after the grace; a second call can only shorten it."""
        if not self._stopping.is_set():
            self.reporter.event(self, "Killing", "Stopping container " + ", ".join(c.name for c in self.main))
        with self._lock:
            first = not self._stopping.is_set()
            self._stopping.set()
            for container in [*self.init, *self.main] if first else []:
                container.signal(signal.SIGTERM)
        timer = threading.Timer(grace, self.kill)
        timer.daemon = True
        timer.start()

    def kill(self) -> None:
        """SIGKILL, and no restart."""
        with self._lock:
            self._stopping.set()
            for container in [*self.init, *self.main]:
                container.kill()

    def fail(self, reason: str, message: str, grace: float) -> None:
        """End it as a kubelet does that is short of something."""
        self.failed = {"reason": reason, "message": message}
        self.stop(grace)

    # --- its life
    def _run(self) -> None:
        volumes = Volumes(self.directory / "volumes", self.machine.state / "nfs", self._source())
        try:
            self._pause = pause(["--net", "--uts", "--ipc"], self.named().hostname)
            self.address = self.machine.network.join(self._pause.pid)
            self.reporter.changed(self)
            if self._prepare(volumes):
                place = self._place(volumes, self._pause.pid)
                if self._initialise(place):
                    self._together(place)
        finally:
            if self._pause is not None:
                self._pause.kill()
                self._pause.wait()
            volumes.close()
            self.over.set()
            self.reporter.changed(self)

    def _source(self) -> Source:
        live = {"podIP": self.address, "hostIP": self.node_address, "apiIP": SERVICE_ADDRESS}
        return Source(self.machine.client, self.pod, live)

    def _place(self, volumes: Volumes, pid: int) -> Place:
        return Place(self.directory, self.hosts, volumes, self._source(), pid, self.machine.reachable)

    def _prepare(self, volumes: Volumes) -> bool:
        """Make the volumes; False if it was stopped before they were there."""
        return self._until(volumes.prepare, lambda error: self.reporter.event(self, "FailedMount", str(error)))

    def _until(self, action: Callable[[], None], failed: Callable[[SourceError], None]) -> bool:
        said = ""
        while not self._stopping.is_set():
            try:
                action()
                return True
            except SourceError as error:
                if str(error) != said:
                    said = str(error)
                    failed(error)
                self._stopping.wait(HELD)
        return False

    def _initialise(self, place: Place) -> bool:
        for container in self.init:
            self._keep(container, place, restart_always=False)
            if container.code != 0:
                return False
        return not self._stopping.is_set()

    def _together(self, place: Place) -> None:
        always = self.policy == "Always"
        for container in self.main:
            container.waits("ContainerCreating")
        threads = [
            threading.Thread(target=self._keep, args=(each, place), kwargs={"restart_always": always}, daemon=True)
            for each in self.main
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _keep(self, container: Container, place: Place, *, restart_always: bool) -> None:
        """Run one container, again as often as the policy says."""
        while not self._stopping.is_set():
            if "absent" in container.spec["image"]:
                self._back_off_pulling(container)
                return
            if not self._until(lambda: self._launch(container, place), lambda error: self._refused(container, error)):
                return
            self.reporter.changed(self)
            container.wait()
            self.reporter.changed(self)
            again = restart_always or (container.code != 0 and self.policy != "Never")
            if self._stopping.is_set() or not again:
                return
            container.last, delay = container.state, min(2.0**container.restarts, LONGEST_BACKOFF)
            container.waits("CrashLoopBackOff", f"back-off {delay:.0f}s restarting failed container={container.name}")
            self.reporter.changed(self)
            self._stopping.wait(delay)
            container.restarts += 1
        container.state = container.last or container.state  # stopped between two lives

    def _launch(self, container: Container, place: Place) -> None:
        write_in_place(
            self.hosts, self.hosts.read_text() or f"127.0.0.1 localhost\n{self.address} {self.named().hostname}\n"
        )
        with self._lock:  # a stop comes before or after: it misses no container
            if not self._stopping.is_set():
                container.start(place)

    def _refused(self, container: Container, error: SourceError) -> None:
        container.waits("CreateContainerConfigError", str(error))
        self.reporter.changed(self)

    def _back_off_pulling(self, container: Container) -> None:
        image = container.spec["image"]
        container.waits("ErrImagePull", f'failed to pull image "{image}": not found')
        self.reporter.event(self, "Failed", f'Failed to pull image "{image}": not found')
        self.reporter.changed(self)
        self._stopping.wait(HELD)
        container.waits("ImagePullBackOff", f'Back-off pulling image "{image}"')
        self.reporter.changed(self)
        self._stopping.wait()

    # --- what the API should know
    def phase(self) -> str:
        """Return the phase; the terminal ones follow from the exit codes, also for a pod that is being deleted."""
        if not self.over.is_set():
            return "Running" if any(c.process for c in self.main) else "Pending"
        codes = [c.code for c in self.main]
        return "Succeeded" if self.failed is None and all(code == 0 for code in codes) else "Failed"

    def status(self) -> Object:
        """Return the part of the status that is the kubelet's; conditions of others stay as they are."""
        phase, ready = self.phase(), all("running" in container.state for container in self.main)
        initialised = all(container.code == 0 for container in self.init)
        conditions = {"PodReadyToStartContainers": bool(self.address) and not self.over.is_set()}
        conditions |= {"Initialized": initialised, "ContainersReady": ready, "Ready": ready}
        status: Object = {
            "phase": phase,
            "hostIP": self.node_address,
            "startTime": self.began,
            "conditions": [self._condition(name, str(holds)) for name, holds in conditions.items()],
            "containerStatuses": [container.status() for container in self.main],
            "initContainerStatuses": [container.status(init=True) for container in self.init],
        }
        if self.address:
            status |= {"podIP": self.address, "podIPs": [{"ip": self.address}]}
        if self.failed is not None:
            why = {"reason": "TerminationByKubelet", "message": self.failed["message"]}
            status |= self.failed
            status["conditions"].append(self._condition("DisruptionTarget", "True") | why)
        return status

    def _condition(self, name: str, value: str) -> Object:
        if self._conditions.get(name, {}).get("status") != value:
            self._conditions[name] = {"type": name, "status": value, "lastTransitionTime": now()}
        return self._conditions[name]
