"""Talks to a Kubernetes API server: connection, retries, typed errors, watches. Knows nothing of runs and commands.

``connect()`` returns an ``Api``; paths come from ``object_path()``; ``Watched`` keeps a list of objects up to date.
"""

from __future__ import annotations

from fullft_cluster.kubernetes_api.api import Api, Json
from fullft_cluster.kubernetes_api.connection import connect
from fullft_cluster.kubernetes_api.failures import (
    ApiError,
    Conflict,
    Forbidden,
    GroupNotFound,
    Invalid,
    NotFound,
    Unreachable,
)
from fullft_cluster.kubernetes_api.kinds import object_path
from fullft_cluster.kubernetes_api.watched import Watched

__all__ = [
    "Api",
    "ApiError",
    "Conflict",
    "Forbidden",
    "GroupNotFound",
    "Invalid",
    "Json",
    "NotFound",
    "Unreachable",
    "Watched",
    "connect",
    "object_path",
]
