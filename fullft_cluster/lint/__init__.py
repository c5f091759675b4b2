"""Traps in sbatch scripts and Kubernetes manifests, ours or foreign. Pure: from a file's bytes to findings.

`shell`, `sbatch`, `manifest` and `workload` read; `sbatch_options`, `sbatch_body`, `kubernetes_jobs` and
`kubernetes_pods` hold the rules, each with its reason, fix and source; `check` applies them; `report` shows.
"""

from __future__ import annotations

from fullft_cluster.lint.check import MAX_BYTES, lint
from fullft_cluster.lint.nouns import Finding
from fullft_cluster.lint.rules import chosen

__all__ = ["MAX_BYTES", "Finding", "chosen", "lint"]
