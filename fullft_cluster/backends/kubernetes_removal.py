"""What of a run there is to delete, and the wait until it is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from fullft_cluster.backends.kubernetes_objects import REMOVABLE, Names, path_of
from fullft_cluster.kubernetes_api import Api, ApiError, Forbidden, Json, NotFound, object_path
from fullft_cluster.runtime.kubernetes_target import KINDS

GONE_SECONDS = 120.0
"""How long what was deleted may take to go: pods stop first."""
POLL_SECONDS = 0.5
CLAIM = "PersistentVolumeClaim"


def objects_of(api: Api, namespace: str, name: str, *, storage: bool) -> Iterator[Json]:
    """Yield a run's objects in the order in which they are deleted; its own claim only with ``storage``.

    Raises Forbidden where those may not be listed without which there is no run.
    """
    for kind in (*REMOVABLE, *((CLAIM,) if storage else ())):
        try:
            yield from api.list(object_path(kind, namespace), Names(name).selector)
        except NotFound:  # of an operator that is not installed
            continue
        except Forbidden:
            if kind in (*KINDS.values(), "ConfigMap", CLAIM):
                raise


def claims_of(api: Api, namespace: str, name: str) -> list[Json]:
    """Return the claims that were made for a run, none where they may not be looked at."""
    return _listed(api, CLAIM, namespace, name)


def pods_of(api: Api, namespace: str, name: str) -> list[Json]:
    """Return the pods of a run, none where they may not be looked at."""
    return _listed(api, "Pod", namespace, name)


def _listed(api: Api, kind: str, namespace: str, name: str) -> list[Json]:
    try:
        return api.list(object_path(kind, namespace), Names(name).selector)
    except Forbidden:
        return []


def wait_until_gone(api: Api, objects: Sequence[Json]) -> list[Json]:
    """Wait until objects are gone, or others of their name are there; return those that stay."""
    left, deadline = list(objects), time.monotonic() + GONE_SECONDS
    while left and time.monotonic() < deadline:
        left = [obj for obj in left if _is_there(api, obj)]
        if left:
            time.sleep(POLL_SECONDS)
    return left


def _is_there(api: Api, obj: Json) -> bool:
    try:
        found = api.find(path_of(obj))
    except ApiError as error:
        if error.status == 403:  # may delete, may not look
            return False
        raise
    return found is not None and found["metadata"]["uid"] == obj["metadata"]["uid"]
