"""Finds the API server as kubectl does: the kubeconfig's context, or the cluster that this process runs in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fullft_cluster.errors import Problem, SchedulerError, UsageError, did_you_mean
from fullft_cluster.kubernetes_api.api import Api
from fullft_cluster.kubernetes_api.transport import PATIENCE_SECONDS, to_stderr

DEFAULT_KUBECONFIG = "~/.kube/config"
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def connect(
    context: str | None = None,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    report: Callable[[str], None] = to_stderr,
) -> Api:
    """Return the API server of a kubeconfig's context (None: the current one, or that of the pod).

    Nothing is sent yet. Raises UsageError where the client is not installed or the context is not there, and
    SchedulerError where no cluster is configured or the kubeconfig is broken.
    """
    try:
        import kubernetes.client
        import urllib3
    except ImportError:
        fix = "Run `pip install 'fullft-cluster[kubernetes]'`."
        raise UsageError(Problem("kubernetes", "the client is not installed", fix)) from None
    configuration = kubernetes.client.Configuration()
    configuration.retries = False
    configuration.keep_alive = True  # of the client from 37 on
    found = _context(context)
    if found is None:
        namespace = _in_cluster(configuration)
    else:
        namespace = str((found.get("context") or {}).get("namespace") or "default")
        _load(configuration, str(found["name"]))
    if not configuration.verify_ssl:  # the kubeconfig says so: not for us to say it at each request
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    api = Api(kubernetes.client.ApiClient(configuration), patience_seconds=patience_seconds, report=report)
    api.context, api.namespace = (None if found is None else str(found["name"])), namespace
    return api


def default_namespace(context: str | None = None) -> str | None:
    """Return the namespace that a kubeconfig's context names; None where it names none, or there is no context."""
    try:
        found = _context(context)
    except ImportError:  # where the client is not installed, only manifests are rendered
        return None
    return None if found is None else ((found.get("context") or {}).get("namespace") or None)


def _files() -> str:
    """Return what KUBECONFIG says now; the client looks at it once, when it is imported."""
    return os.environ.get("KUBECONFIG") or DEFAULT_KUBECONFIG


def _context(name: str | None) -> dict[str, Any] | None:
    """Return the kubeconfig's entry of a context, None where there is no kubeconfig and none was asked for."""
    files = _files()
    if not any(Path(path).expanduser().exists() for path in files.split(os.pathsep) if path):
        if name is None:
            return None
        what = f"no context {name!r}: there is no kubeconfig at {files}"
        raise UsageError(Problem("--context", what, "Set KUBECONFIG, or copy your cluster's kubeconfig there."))
    contexts, current = _contexts(files)
    if name is None and current is None:
        what = f"the kubeconfig {files} has no current context"
        raise UsageError(Problem("--context", what, f"Give one of: {', '.join(sorted(contexts)) or 'it has none'}."))
    chosen = name or str(current)
    if chosen not in contexts:
        what = f"no context {chosen!r} in the kubeconfig"
        fix = did_you_mean(chosen, contexts) if contexts else f"{files} has none at all."
        raise UsageError(Problem("--context", what, fix))
    return contexts[chosen]


def _contexts(files: str) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Return the contexts by name, and the current one's name. Raises SchedulerError for a broken kubeconfig.

    Of several files the first that names a current context decides, as for kubectl
    (https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/); the client takes the last.
    """
    from kubernetes.config.kube_config import KubeConfigMerger

    try:
        merger = KubeConfigMerger(files)
        contexts = {str(node.value["name"]): dict(node.value) for node in merger.config.value["contexts"]}
        named = (one.get("current-context") for one in merger.config_files.values())
        return contexts, next((str(current) for current in named if current), None)
    except Exception as error:  # what YAML, a missing key, a wrong type or a file without permission raise
        raise _broken(files, error) from None


def _load(configuration: Any, context: str) -> None:
    import kubernetes.config

    configuration.host = ""  # the client would take http://localhost
    try:
        kubernetes.config.load_kube_config(_files(), context, configuration)
    except Exception as error:  # as above: the client lets every kind through
        raise _broken(_files(), error) from None
    if not configuration.host or not str(configuration.host).startswith("http"):
        raise _broken(_files(), ValueError(f"the cluster of context {context!r} has no URL of a server"))


def _broken(files: str, error: Exception) -> SchedulerError:
    words = " ".join(str(error).split()) or type(error).__name__
    fix = "Look at it by `kubectl config view`, or fetch the cluster's kubeconfig anew."
    return SchedulerError(Problem(files, f"is no usable kubeconfig: {words}", fix))


def _in_cluster(configuration: Any) -> str:
    """Configure for the cluster that this pod is in; return the pod's namespace. Raises SchedulerError elsewhere."""
    import kubernetes.config

    try:
        kubernetes.config.load_incluster_config(client_configuration=configuration)
        return _POD_NAMESPACE.read_text().strip() or "default"
    except kubernetes.config.ConfigException:
        what = f"no cluster is configured: there is no kubeconfig at {_files()}, and this is no pod with a token"
        fix = "Set KUBECONFIG, or copy your cluster's kubeconfig there."
        raise SchedulerError(Problem("kubernetes", what, fix)) from None
    except OSError:
        return "default"
