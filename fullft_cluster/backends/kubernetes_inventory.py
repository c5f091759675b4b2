"""Asks a Kubernetes API server for its nodes, in pages."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import msgspec

from fullft_cluster.errors import Problem, SchedulerError
from fullft_cluster.inventory import Inventory
from fullft_cluster.inventory.kube_json import NodeList, decode
from fullft_cluster.inventory.reading import from_kubernetes
from fullft_cluster.kubernetes_api import Api, ApiError, connect, object_path
from fullft_cluster.kubernetes_api.transport import Request

PAGE = 1000
PATIENCE_SECONDS = 5.0
"""A plan had rather fail at once: nothing is lost by asking again."""
OR_A_FILE = "Or give the file of `kubectl get nodes -o json`."


def read_kubernetes(context: str | None) -> Inventory:
    """Return the inventory of the cluster of a kubeconfig's context (None: the current one, or the pod's own cluster).

    Raises SchedulerError when the API server is out of reach or refuses, UsageError for a context that is not there.
    """
    try:
        api = connect(context, patience_seconds=PATIENCE_SECONDS)
        pages = _pages(api)
        first = next(pages)  # before the version: where the server is away, it is waited for once
        return from_kubernetes(chain((first,), pages), version=_version(api))
    except SchedulerError as error:
        raise SchedulerError(
            Problem(one.where, one.what, f"{one.fix} {OR_A_FILE}".strip()) for one in error.problems
        ) from None


def _pages(api: Api) -> Iterator[NodeList]:
    """Yield the pages of the list of nodes, as decoded from bytes: models take a second for a thousand nodes.

    Version 0 lets the server answer from its cache, the cheapest for it
    (https://kubernetes.io/docs/reference/using-api/api-concepts/#semantics-for-get-and-list); it may then send more
    than a page at once.
    """
    next_page = ""
    while True:
        more = {"continue": next_page} if next_page else {"resourceVersion": "0"}
        answer = api.open(Request("GET", object_path("Node", None), {"limit": PAGE, **more}))
        try:
            page = decode(answer.data)
        except msgspec.DecodeError as error:
            what = f"{api.host} sent no list of nodes: {error}"
            raise SchedulerError(Problem("kubernetes", what, "Is that an API server?")) from None
        yield page
        next_page = page.metadata.next
        if not next_page:
            return


def _version(api: Api) -> str:
    """Return the server's version, empty where it does not say."""
    try:
        return api.version()
    except ApiError:
        return ""
