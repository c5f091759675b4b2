"""Asks a Kubernetes API server for its nodes, in pages, as the client's own kubeconfig says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from fullft_cluster.errors import Problem, SchedulerError, UsageError, did_you_mean
from fullft_cluster.inventory import Inventory
from fullft_cluster.inventory.kube_json import NodeList, decode
from fullft_cluster.inventory.reading import from_kubernetes

PAGE = 1000
TIMEOUT_SECONDS = (5, 60)
"""To connect, and for an answer."""


def read_kubernetes(context: str | None) -> Inventory:
    """Return the inventory of the cluster of a kubeconfig's context (None: the current one, or the pod's own cluster).

    Raises SchedulerError when the API server is out of reach or refuses, UsageError for a context that is not there.
    """
    try:
        import kubernetes.client
    except ImportError:
        fix = "Run `pip install 'fullft-cluster[kubernetes]'`, or give the file of `kubectl get nodes -o json`."
        raise UsageError(Problem("kubernetes", "the client is not installed", fix)) from None
    with kubernetes.client.ApiClient(_configuration(context)) as client:
        return from_kubernetes(_pages(client), version=_version(client))


def _configuration(context: str | None) -> Any:
    import kubernetes.client
    import kubernetes.config

    configuration = kubernetes.client.Configuration()
    configuration.retries = False
    try:
        kubernetes.config.load_kube_config(_kubeconfig(), context, configuration)
    except kubernetes.config.ConfigException as error:
        if context is not None:
            raise UsageError(_no_context(context, str(error))) from None
        try:
            kubernetes.config.load_incluster_config(client_configuration=configuration)
        except kubernetes.config.ConfigException:
            what = f"no cluster is configured: {error}"
            fix = "Set KUBECONFIG, or give the file of `kubectl get nodes -o json`."
            raise SchedulerError(Problem("kubernetes", what, fix)) from None
    return configuration


def _kubeconfig() -> str | None:
    """Return what KUBECONFIG says now; the client looks at it once, when it is imported."""
    return os.environ.get("KUBECONFIG") or None


def _no_context(context: str, words: str) -> Problem:
    import kubernetes.config

    try:
        contexts, _ = kubernetes.config.list_kube_config_contexts(_kubeconfig())
    except kubernetes.config.ConfigException:
        return Problem("inventory", f"no context {context!r}: {words}", "Set KUBECONFIG.")
    names = [entry["name"] for entry in contexts]
    return Problem("inventory", f"no context {context!r} in the kubeconfig", did_you_mean(context, names))


def _pages(client: Any) -> Iterator[NodeList]:
    """Yield the pages of the list of nodes.

    Not by the client's own models, which take a second for a thousand nodes. Version 0 lets the server answer from its
    cache, the cheapest for it (https://kubernetes.io/docs/reference/using-api/api-concepts/#semantics-for-get-and-list);
    it may then send more than a page at once.
    """
    import kubernetes.client
    import urllib3.exceptions

    api, next_page = kubernetes.client.CoreV1Api(client), ""
    while True:
        more = {"_continue": next_page} if next_page else {"resource_version": "0"}
        try:
            answer = api.list_node(limit=PAGE, _preload_content=False, _request_timeout=TIMEOUT_SECONDS, **more)
            page = decode(answer.data)
        except kubernetes.client.ApiException as error:
            raise SchedulerError(_refused(error, client.configuration.host)) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            what = f"{client.configuration.host} does not answer: {_cause(error)}"
            fix = "Is the kubeconfig's server right and reachable from here? Try `kubectl get nodes`."
            raise SchedulerError(Problem("kubernetes", what, fix)) from None
        except msgspec.DecodeError as error:
            what = f"{client.configuration.host} sent no list of nodes: {error}"
            raise SchedulerError(Problem("kubernetes", what, "Is that an API server?")) from None
        yield page
        next_page = page.metadata.next
        if not next_page:
            return


def _cause(error: BaseException) -> str:
    """Return an error's own words without the client's objects around them."""
    text = str(getattr(error, "reason", None) or error)
    return re.sub(r"^<[^>]*>: |^\w*\(.*?\): ", "", text)


def _refused(error: Any, host: str) -> Problem:
    """Say what permission is missing, and the command that grants it."""
    try:
        words = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        words = str(error.reason)
    if error.status == 401:
        fix = "Log in anew (the kubeconfig's token or certificate is refused), or choose another context."
        return Problem("kubernetes", f"{host} does not know you: {words}", fix)
    if error.status == 403:
        named = re.search(r'User "([^"]+)"', words)
        fix = (
            "Ask an administrator for `kubectl create clusterrole node-reader --verb=get,list --resource=nodes` and "
            f"`kubectl create clusterrolebinding node-reader-for-you --clusterrole=node-reader {_subject(named)}`."
        )
        return Problem("kubernetes", f"you may not list nodes: {words}", fix)
    return Problem("kubernetes", f"{host} refused to list nodes ({error.status}): {words}")


def _subject(named: re.Match[str] | None) -> str:
    """Return the option of ``kubectl create clusterrolebinding`` for whom the server named."""
    name = named[1] if named else "NAME"
    account = re.fullmatch(r"system:serviceaccount:([^:]+):([^:]+)", name)
    return f"--serviceaccount={account[1]}:{account[2]}" if account else f"--user={name}"


def _version(client: Any) -> str:
    """Return the server's version, empty where it does not say."""
    import kubernetes.client
    import urllib3.exceptions

    try:
        api = kubernetes.client.VersionApi(client)
        answer = api.get_code(_preload_content=False, _request_timeout=TIMEOUT_SECONDS)
        return str(json.loads(answer.data).get("gitVersion", "")).removeprefix("v")
    except (kubernetes.client.ApiException, urllib3.exceptions.HTTPError, OSError, ValueError):
        return ""
