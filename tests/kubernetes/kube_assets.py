"""Where the control plane's binaries are: KUBEBUILDER_ASSETS, the usual variable, or packed beside the checkout."""

from __future__ import annotations

import lzma
import os
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
BINARIES = ("etcd", "kube-apiserver")
HOW = (
    "to get them: `go install sigs.k8s.io/controller-runtime/tools/setup-envtest@latest`, then "
    '`export KUBEBUILDER_ASSETS="$(setup-envtest use -p path)"`'
)


def find() -> Path | str:
    """Return the directory with etcd and kube-apiserver, or a sentence that says what is missing and how to get it."""
    if shutil.which("openssl") is None:
        return "the control plane needs openssl (a key for service accounts)"
    if named := os.environ.get("KUBEBUILDER_ASSETS"):
        absent = [name for name in BINARIES if not os.access(Path(named) / name, os.X_OK)]
        return f"KUBEBUILDER_ASSETS={named} has no {', '.join(absent)}; {HOW}" if absent else Path(named)
    packed = Path(os.environ.get("FULLFT_CLUSTER_SHARED", ROOT.parent / "shared")) / "k8s" / "bin"
    if not all((packed / f"{name}.xz").is_file() for name in BINARIES):
        return f"no Kubernetes binaries ({', '.join(BINARIES)}): KUBEBUILDER_ASSETS is not set; {HOW}"
    return unpacked(packed)


def unpacked(packed: Path) -> Path:
    """Unpack `*.xz` into the user's cache once (200 MB, a few seconds) and return that directory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fullft-cluster" / "kubernetes"
    cache.mkdir(parents=True, exist_ok=True)
    for name in BINARIES:
        source, target = packed / f"{name}.xz", cache / name
        if target.exists() and target.stat().st_mtime >= source.stat().st_mtime:
            continue
        part = target.with_suffix(f".{os.getpid()}")  # two test sessions may unpack at the same time
        with lzma.open(source) as reader, part.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
        part.chmod(0o755)
        part.rename(target)
    return cache
