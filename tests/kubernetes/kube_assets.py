"""Where the binaries and the operators' objects are: KUBEBUILDER_ASSETS, the usual variable, or beside the checkout.

Each thing is looked for in `$KUBEBUILDER_ASSETS` first (`NAME`, `crds/*.yaml.gz`, `webhooks/OPERATOR.json`), then in
the folder `k8s` beside the checkout (`bin/NAME.xz`, and the same `crds` and `webhooks`).
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PLANE = ("etcd", "kube-apiserver")
CLUSTER = (*PLANE, "kube-controller-manager", "kube-scheduler", "kubectl")
RELEASE = "https://dl.k8s.io/release/v1.36.3/bin/linux/amd64"
ENVTEST = (
    "`go install sigs.k8s.io/controller-runtime/tools/setup-envtest@latest`, then "
    '`export KUBEBUILDER_ASSETS="$(setup-envtest use -p path)"`'
)


class Operator(NamedTuple):
    """A controller of training jobs: its binary, the beginnings of its CRDs' file names, its Go module."""

    binary: str
    crds: tuple[str, ...]
    module: str


OPERATORS = {
    "training-operator": Operator(
        "training-operator", ("pytorchjobs",), "github.com/kubeflow/training-operator@v1.9.3"
    ),
    "jobset": Operator("jobset", ("jobsets",), "sigs.k8s.io/jobset@v0.12.0"),
    "trainer": Operator(
        "trainer-controller-manager",
        ("trainjobs", "trainingruntimes", "clustertrainingruntimes"),
        "github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager@v2.3.0",
    ),
    "kueue": Operator("kueue", ("kueue-",), "sigs.k8s.io/kueue/cmd/kueue@v0.19.2"),
}
BINARIES = (*CLUSTER, *(operator.binary for operator in OPERATORS.values()))


def find(names: tuple[str, ...] = PLANE, operators: tuple[str, ...] = ()) -> dict[str, Path] | str:
    """Return where these binaries are, by name, or a sentence that says what is missing and how to get it."""
    if shutil.which("openssl") is None:
        return "the control plane needs openssl (keys and certificates)"
    wanted = (*names, *(OPERATORS[name].binary for name in operators))
    absent = [name for name in wanted if not _installed(name) and not _packed(name)]
    for name in operators:
        if not all(crds(name, prefix) for prefix in OPERATORS[name].crds):
            absent.append(f"crds of {name}")
        if webhooks(name) is None:
            absent.append(f"webhooks/{name}.json")
    if absent:
        named = os.environ.get("KUBEBUILDER_ASSETS")
        where = f"KUBEBUILDER_ASSETS={named} has not all" if named else "KUBEBUILDER_ASSETS is not set"
        return f"missing for Kubernetes: {', '.join(absent)}; {where}; to get them: {how(absent)}"
    return {name: _installed(name) or _unpacked(name) for name in wanted}


def how(absent: list[str]) -> str:
    """Return the ways to get what is absent."""
    ways = []
    if {"etcd", "kube-apiserver", "kubectl"} & set(absent):
        ways.append(ENVTEST)
    ways += [f"{RELEASE}/{name}" for name in CLUSTER[2:4] if name in absent]
    for name, operator in OPERATORS.items():
        if any(name in what or operator.binary == what for what in absent):
            ways.append(f"{name}: build {operator.module}, with its CRDs and webhooks")
    return "; ".join(ways)


def crds(operator: str, prefix: str | None = None) -> list[bytes]:
    """Return the operator's CRDs, one YAML document each; [] if a folder with them is missing."""
    prefixes = (prefix,) if prefix else OPERATORS[operator].crds
    for folder in _folders("crds"):
        if found := [path for path in sorted(folder.glob("*.yaml.gz")) if path.name.startswith(prefixes)]:
            return [gzip.decompress(path.read_bytes()) for path in found]
    return []


def webhooks(operator: str) -> str | None:
    """Return the operator's webhook configurations as a JSON list, with @PORT@ and @CA@ (base64) to be filled in."""
    paths = (folder / f"{operator}.json" for folder in _folders("webhooks"))
    return next((path.read_text() for path in paths if path.is_file()), None)


def _folders(name: str) -> list[Path]:
    named = os.environ.get("KUBEBUILDER_ASSETS")
    return [*([Path(named) / name] if named else []), _beside() / name]


def _beside() -> Path:
    return Path(os.environ.get("FULLFT_CLUSTER_SHARED", ROOT.parent / "shared")) / "k8s"


def _installed(name: str) -> Path | None:
    named = os.environ.get("KUBEBUILDER_ASSETS")
    path = Path(named or "") / name
    return path if named and os.access(path, os.X_OK) else None


def _packed(name: str) -> bool:
    return (_beside() / "bin" / f"{name}.xz").is_file()


def _unpacked(name: str) -> Path:
    """Unpack one into the user's cache, once, and return its path there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fullft-cluster" / "kubernetes"
    source, target = _beside() / "bin" / f"{name}.xz", cache / name
    if target.exists() and target.stat().st_mtime >= source.stat().st_mtime:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}")  # two test sessions may unpack at the same time
    with lzma.open(source) as reader, part.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
    part.chmod(0o755)
    part.rename(target)
    return target
