"""Where ``templates/``, ``manifests/`` and ``configs/`` lie: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def share(kind: str) -> Path:
    """Return the directory of ``templates``, ``manifests`` or ``configs``.

    Raises FileNotFoundError when an installation lacks it.
    """
    for candidate in (_PACKAGE / "_share" / kind, _PACKAGE.parent / kind):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"{kind}/ is missing from this installation of fullft-cluster; reinstall it")
