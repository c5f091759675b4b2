"""Makes the objects of a run: all of them, or none; what could not be taken back is named."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence

from fullft_cluster.backends.interrupts import held_back
from fullft_cluster.backends.kubernetes_objects import Names, path_of, words_of
from fullft_cluster.errors import FullftError, Problem, SchedulerError, UsageError
from fullft_cluster.kubernetes_api import Api, ApiError, Conflict, Json, Unreachable

SUBMISSION = "fullft-cluster/submission"
"""Annotation of NAME-state: which submit made it. Of two at the same time only one goes on, and a create that is
repeated after a lost answer knows its own."""

CACHE_SECONDS = 10.0
"""How far behind a controller's view of the cluster may be."""

Say = Callable[[str], None]


def make_all(api: Api, objects: Sequence[Json], run: str, say: Say) -> None:
    """Make the objects in their order. On any error, and on an interrupt, what was made is removed again.

    Raises UsageError when another submit took the name meanwhile, and ApiError for what the server refuses; an error
    that leaves something behind names it.
    """
    lock = next((obj for obj in objects if obj["metadata"]["name"] == Names(run).state), objects[0])
    begun: list[Json] = []
    try:
        # A request that is given up half-way may still be carried out, after what takes it back.
        with held_back(say) as interrupts:
            _take_name(api, lock, begun)
            for obj in objects:
                interrupts.check()
                if obj is not lock:
                    begun.append(obj)  # before it is sent: where the answer is lost, it may be there
                _apply(api, obj)
                say(f"{words_of(obj)} made")
            interrupts.check()
    except BaseException as error:
        if begun:
            say(f"removing what was made: {len(begun)} objects")
        left = remove(api, begun)
        if left and isinstance(error, FullftError):
            kind = UsageError if isinstance(error, UsageError) else SchedulerError
            raise kind([*error.problems, left_behind(left)]) from None
        if left:
            say(str(left_behind(left)))
        raise


def _apply(api: Api, obj: Json) -> None:
    """Apply an object; a TrainJob again for some seconds while its webhook has not seen the runtime made before it."""
    deadline = time.monotonic() + CACHE_SECONDS
    while True:
        try:
            api.apply(obj)
        except ApiError as error:
            late = obj["kind"] == "TrainJob" and "runtime" in error.words.lower()
            if not late or time.monotonic() > deadline:
                raise
            api.sleep(0.5)
        else:
            return


def _take_name(api: Api, lock: Json, begun: list[Json]) -> None:
    """Create the object that only one submit of a name can create; note it in `begun` unless it is another's."""
    mine = str(uuid.uuid4())
    metadata = lock["metadata"]
    annotations = {**(metadata.get("annotations") or {}), SUBMISSION: mine}
    try:
        api.create({**lock, "metadata": {**metadata, "annotations": annotations}})
    except BaseException as error:
        if _may_be_ours(api, lock, mine):
            begun.append(lock)
        if not isinstance(error, Conflict):
            raise
        if begun:
            return  # made by a try whose answer was lost
        what = f"is taken: another submit made {words_of(lock)} a moment ago"
        raise UsageError(Problem("--name", what, "Choose another --name.")) from None
    begun.append(lock)


def _may_be_ours(api: Api, lock: Json, submission: str) -> bool:
    try:
        found = api.find(path_of(lock))
    except ApiError:
        return True  # it cannot be told: at the worst it is named as left behind
    return found is not None and (found["metadata"].get("annotations") or {}).get(SUBMISSION) == submission


def remove(api: Api, objects: Sequence[Json]) -> list[Json]:
    """Delete objects, the last first; return those that may still be there."""
    left: list[Json] = []
    away = False
    for obj in reversed(objects):
        try:
            if not away:
                api.delete(path_of(obj), propagation="Background")
                continue
        except Unreachable:  # each would wait as long again
            away = True
        except (ApiError, KeyboardInterrupt):
            pass
        left.append(obj)
    return left


def left_behind(objects: Sequence[Json]) -> Problem:
    """Return what to say of objects that could not be removed."""
    namespace = objects[0]["metadata"].get("namespace", "default")
    names = " ".join(words_of(obj) for obj in objects)
    fix = f"Once the server answers: `kubectl delete -n {namespace} {names}`."
    return Problem("left behind", f"these may still be there: {names}", fix)
