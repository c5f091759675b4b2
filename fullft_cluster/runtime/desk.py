"""Where a run on Kubernetes and the commands of people meet: a ConfigMap. Their machines do not see the volume.

The supervisor writes what `status` shows, and reads what `cancel` and `resume` ask for.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

import msgspec
from msgspec.structs import replace

from fullft_cluster.kubernetes_api import Api, ApiError
from fullft_cluster.rundir import RunDir, write_json
from fullft_cluster.runtime import evidence, pod_state
from fullft_cluster.runtime.kubernetes_target import Target, release
from fullft_cluster.status import read_status

PERIOD_SECONDS = 5.0
TIDY_SECONDS = 60.0

ATTEMPTS_BYTES = 384 * 1024
"""Of the newest attempts that are published, in two places: a ConfigMap holds a mebibyte, and a line names every node
and worker."""

log = logging.getLogger("supervisor")


class Desk:
    """Publishes and takes requests, in a thread of its own, so that a cancel is heard whatever is waited for."""

    def __init__(self, run: RunDir, target: Target, api: Api) -> None:
        self.run, self.target, self.api = run, target, api
        self._over = threading.Event()
        self._tidied = float("-inf")
        self._published: dict[str, str] = {}
        self._thread = threading.Thread(target=self._serve, name="desk", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Publish the last state."""
        self._over.set()
        self._thread.join(timeout=60)
        self._tidied = float("-inf")
        self._turn()

    def resume_if_asked(self) -> None:
        """Open a run that has ended again, if that is what was asked for last."""
        request = self._new_request(self._data())
        if request.get("action") == "resume":
            self.run.reopen(excluded_nodes=[])
            self._honour(request)
            log.info("resumed")

    def cancel_is_asked(self) -> bool:
        """Return whether the last request is a cancel."""
        return self._new_request(self._data()).get("action") == "cancel"

    def tidy(self) -> None:
        """Release the pods of the supervisor before this one, and of the preparation, that a dead node has kept."""
        if time.monotonic() - self._tidied < TIDY_SECONDS:
            return
        self._tidied = time.monotonic()
        for component in ("supervisor", "prepare"):
            for pod in self.api.list(self.target.pods_path, self.target.selector(component)):
                if pod_state.overdue(pod) or pod_state.abandoned(pod):
                    release(self.api, self.target, pod)

    def say(self, state: str, reason: str) -> None:
        """Publish a state of a run that has no directory (yet)."""
        self._patch({"run.json": json.dumps({"name": self.run.name, "state": state, "reason": reason})})

    def _serve(self) -> None:
        while not self._over.wait(PERIOD_SECONDS):
            self._turn()

    def _turn(self) -> None:
        try:
            request = self._new_request(self._data())
            if request.get("action") == "cancel":
                log.info("cancel was asked for")
                write_json(self.run.stop, {"reason": "cancelled", "time": time.time()})
                self._honour(request)
            self._publish()
            self.tidy()
        except ApiError as error:
            log.warning("%s", error)
        except OSError as error:  # the volume hangs or is full: said, and tried again
            log.warning("%s", error)

    # --- requests
    def _data(self) -> dict[str, str]:
        found: dict[str, str] = (self.api.find(self.target.state_path) or {}).get("data") or {}
        return found

    def _new_request(self, data: dict[str, str]) -> dict[str, Any]:
        """Return the request that has not been honoured yet; empty when there is none."""
        try:
            request = json.loads(data.get("request") or "{}")
        except ValueError:
            return {}
        honoured = evidence.report(self._honoured).get("id")
        return request if isinstance(request, dict) and request.get("id") not in (None, honoured) else {}

    @property
    def _honoured(self) -> Any:
        return self.run.path / "control" / "request.json"

    def _honour(self, request: dict[str, Any]) -> None:
        write_json(self._honoured, request)

    # --- what is published
    def _publish(self) -> None:
        now = read_status(self.run, {})
        lines = _newest(now.attempts)
        data = {
            "run.json": json.dumps(self.run.read_run()),
            "attempts.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
            "status.json": msgspec.json.encode(replace(now, attempts=lines)).decode(),
            "honoured": str(evidence.report(self._honoured).get("id") or ""),
        }
        self._patch(data)

    def _patch(self, data: dict[str, str]) -> None:
        if data != self._published:
            self.api.merge_patch(self.target.state_path, {"data": data})
            self._published = data


def _newest(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last of the attempts, as many as are published."""
    size, first = 0, len(lines)
    while first and (size := size + len(json.dumps(lines[first - 1])) + 1) <= ATTEMPTS_BYTES:
        first -= 1
    return lines[first:]
