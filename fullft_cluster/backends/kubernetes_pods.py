"""What keeps a pod from running, in a sentence with what to do. Pure: from what the API server says of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]
MOST_WORDS = 300
"""Characters of a container's last words (its terminationMessagePath, or the end of its log)."""
_EXPECTED = frozenset({0, 75, 93, 143})
"""Done; stopped with a checkpoint; what a restart repeats, which the run's own reason explains; SIGTERM."""
_PULL = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"})
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError"})
_INSUFFICIENT = re.compile(r"Insufficient ([\w./-]+)")
_TAINT = re.compile(r"untolerated taint(?:\(s\)|s)? \{([^}]*)\}")
_SECRET = re.compile(r'secret "([^"]+)" not found')
_KEY = re.compile(r"couldn't find key (\S+) in Secret (?:\S+/)?([^\s\"]+)")
_PREEMPTION = re.compile(r" (?:no new claims to deallocate, )?preemption:")
"""What the scheduler adds on whether it would help to evict others."""
_NO_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" (not found|is being deleted)')


def pod_problems(pod: Json, events: Sequence[Json] = ()) -> list[str]:
    """Return what is wrong with a pod; nothing where it runs, or is on its way.

    ``events``: the warnings about this pod, which alone say why a volume cannot be mounted.
    """
    if pod["status"].get("phase") == "Succeeded":
        return []
    return list(dict.fromkeys([*_scheduling(pod), *_containers(pod), *_ends(pod), *_mounts(pod, events)]))


def _scheduling(pod: Json) -> Iterator[str]:
    condition = _condition(pod, "PodScheduled")
    if condition.get("status") == "False" and condition.get("reason") == "SchedulingGated":
        gates = ", ".join(gate["name"] for gate in pod["spec"].get("schedulingGates") or ())
        yield f"held back by {gates or 'a scheduling gate'}"
    elif condition.get("status") == "False" and pod["status"].get("phase") == "Pending":
        words = _PREEMPTION.split(_one_line(str(condition.get("message", ""))))[0].rstrip("., ")
        lacking = missing(pod, words)
        yield f"cannot be scheduled: {words}" + (f". It lacks {'; '.join(lacking)}" if lacking else "")


def missing(pod: Json, words: str) -> list[str]:
    """Return the short form of what the scheduler's message says that there is not enough of."""
    found = [f"{name} (a pod asks for {_asked(pod, name)})" for name in dict.fromkeys(_INSUFFICIENT.findall(words))]
    if re.search(r"node affinity|node selector", words):
        wanted = pod["spec"].get("nodeSelector") or {}
        labels = ", ".join(f"{key}={value}" for key, value in wanted.items()) or "its node affinity"
        found.append(f"a free node with {labels}")
    for taint in dict.fromkeys(_TAINT.findall(words)):
        key, _, value = taint.partition(": ")
        found.append(f"a toleration of {key}{f'={value}' if value else ''} (kubernetes.tolerations)")
    if match := _NO_CLAIM.search(words):
        found.append(f"the claim {match[1]}, which {'is not there' if match[2] == 'not found' else match[2]}")
    elif "unbound immediate PersistentVolumeClaims" in words or "didn't find available persistent volumes" in words:
        found.append("a volume for its claim, which is not bound (`kubectl describe pvc` says why)")
    if "no nodes available to schedule pods" in words:
        found.append("any node")
    return found


def _asked(pod: Json, resource: str) -> str:
    for container in pod["spec"].get("containers") or ():
        resources = container.get("resources") or {}
        amount = (resources.get("requests") or {}).get(resource) or (resources.get("limits") or {}).get(resource)
        if amount is not None:
            return str(amount)
    return "some"


def _containers(pod: Json) -> Iterator[str]:
    status = pod["status"]
    for one in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        waiting = (one.get("state") or {}).get("waiting") or {}
        reason, words = str(waiting.get("reason", "")), _one_line(str(waiting.get("message", "")))
        if reason in _PULL:
            yield _pull(str(one.get("image", "")), reason, words)
        elif reason in _CONFIG:
            yield _config(reason, words)
        elif reason == "CrashLoopBackOff":
            last = (one.get("lastState") or {}).get("terminated") or {}
            code = f", last with exit code {last['exitCode']}" if "exitCode" in last else ""
            yield f"{one['name']} has ended {one.get('restartCount', 0)} times{code}"
        ended = (one.get("state") or {}).get("terminated") or (one.get("lastState") or {}).get("terminated") or {}
        if ended.get("reason") == "OOMKilled":
            yield _oom(pod, one["name"])


def _pull(image: str, reason: str, words: str) -> str:
    said = f": {words}" if words and not words.startswith("Back-off pulling image") else ""
    if reason == "InvalidImageName":
        return f"{image} is not the name of an image ({reason})"
    if reason == "ErrImageNeverPull":
        return f"the image {image} is not on the node, and kubernetes.image_pull_policy is Never"
    if re.search(r"unauthorized|denied|forbidden|401|403|authentication", words, re.I):
        return (
            f"the registry refuses the image {image} ({reason}){said}. Name a secret in kubernetes.image_pull_secrets"
        )
    fix = "Is it pushed, with this tag, and does a private registry have its kubernetes.image_pull_secrets?"
    return f"the image {image} cannot be pulled ({reason}){said}. {fix}"


def _config(reason: str, words: str) -> str:
    if match := _SECRET.search(words):
        fix = f"`kubectl create secret generic {match[1]} --from-literal=KEY=...` makes it"
        return f"the secret {match[1]!r} is not there ({reason}). {fix}"
    if match := _KEY.search(words):
        return f"the secret {match[2]!r} has no key {match[1]} ({reason})"
    return f"its container cannot be made ({reason}): {words}"


def _oom(pod: Json, container: str) -> str:
    limit = next(
        (
            (one.get("resources") or {}).get("limits", {}).get("memory")
            for one in pod["spec"].get("containers") or ()
            if one["name"] == container
        ),
        None,
    )
    of = f" of {limit}" if limit else ""
    return f"OOMKilled: it took more host memory than its limit{of}. Raise kubernetes.memory, or offload less"


def _ends(pod: Json) -> Iterator[str]:
    status = pod["status"]
    disrupted = _condition(pod, "DisruptionTarget")
    if status.get("reason") == "Evicted" or disrupted.get("status") == "True":
        words = _one_line(str(status.get("message") or disrupted.get("message") or ""))
        yield f"{status.get('reason') or disrupted.get('reason')}: {words}"
    elif status.get("reason") == "NodeLost" or (
        pod["metadata"].get("deletionTimestamp") and _condition(pod, "Ready").get("reason") == "NodeNotReady"
    ):
        yield f"its node {pod['spec'].get('nodeName')} is lost"
    elif status.get("phase") == "Failed" and status.get("reason"):
        yield f"{status['reason']}: {_one_line(str(status.get('message', '')))}"
    elif status.get("phase") == "Failed":
        yield from _exits(pod)


def _exits(pod: Json) -> Iterator[str]:
    """Yield how containers have failed, but for the ends that the policy of restarts is made for."""
    status = pod["status"]
    for one in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        ended = (one.get("state") or {}).get("terminated") or {}
        code = ended.get("exitCode", 0)
        if code not in _EXPECTED and ended.get("reason") != "OOMKilled":
            message = str(ended.get("message", ""))
            errors = [line for line in message.splitlines() if line.startswith("error: ")]  # of a command of ours
            words = first_of(errors) or _one_line(message)[-MOST_WORDS:]
            yield f"{one['name']} ended with exit code {code}" + (f": {words}" if words else "")


def _mounts(pod: Json, events: Sequence[Json]) -> Iterator[str]:
    if pod["status"].get("phase") != "Pending":
        return
    for event in events:
        if event.get("reason") in ("FailedMount", "FailedAttachVolume"):
            yield f"its volume cannot be mounted: {_one_line(str(event.get('message', '')))}"


def _condition(obj: Json, kind: str) -> Json:
    conditions = obj["status"].get("conditions") or ()
    return next((one for one in conditions if one.get("type") == kind), {})


def short_name(pod: str, run: str) -> str:
    """Return a pod's name without its run's and without a random end: ``master-0``, ``node-1``, ``prepare``."""
    rest = pod.removeprefix(f"{run}-")
    named = re.fullmatch(r"(.*)-[bcdfghjklmnpqrstvwxz2456789]{5}", rest)
    name = named[1] if named else rest
    index = re.fullmatch(r"(?:node-0-)?(\d+)", name)  # of a JobSet's pod, of a Job's
    return f"node-{index[1]}" if index else name


def first_of(lines: Sequence[str]) -> str:
    """Return the first of several errors in one line, and how many more there are; empty for none."""
    told = list(dict.fromkeys(filter(None, map(_one_line, lines))))
    return f"{told[0]} (and {len(told) - 1} more)" if told[1:] else "".join(told)


def _one_line(text: str) -> str:
    return " ".join(text.split())
