"""From a scheduler's word for a GPU to the names in configs/gpus.yaml.

SLURM's types are free text of the site (``a100``, ``a100_80gb``) or, with AutoDetect=nvml, NVML's product name in lower
case with underscores (https://slurm.schedmd.com/gres.conf.html): ``nvidia_h100_80gb_hbm3``. On Kubernetes the label
``nvidia.com/gpu.product`` is the product name with hyphens (https://github.com/NVIDIA/k8s-device-plugin, gpu-feature-
discovery). A name is cut into a core (``h100``), a memory and a form factor; only the core has to be there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fullft_cluster.hardware import CPU, Gpu

MIG = re.compile(r"\d+g\.\d+gb|(?:^|[^a-z])mig(?:$|[^a-z])", re.IGNORECASE)
SHARED = re.compile(r"(?:^|[^a-z])shared$", re.IGNORECASE)
"""gpu-feature-discovery's suffix for time slices and MPS."""

_NOISE = frozenset({"nvidia", "tesla", "geforce", "quadro", "generation", "gpu", "gpus", "dgx", "hgx"})
_SXM = frozenset({"sxm", "sxm2", "sxm3", "sxm4", "sxm5", "sxm6", "hbm2", "hbm2e", "hbm3", "hbm3e", "nvlink"})
"""NVML names HBM only on SXM boards (``H100-80GB-HBM3``). In the table a name without a form factor is one of those."""
_FORMS = frozenset({"pcie", "nvl"})
_MEMORY = re.compile(r"([1-9]\d{1,2})(?:gb|gib|g)?")
_MEMORY_WORDS = frozenset({"gpu", "gpumem", "gmem", "vram", "mem", "memory"})
CPU_MEMORY_IN_NAME = frozenset({"gh200"})
"""Products whose name gives the memory of the CPU beside it: ``NVIDIA GH200 480GB`` has 96 GB of HBM."""
SAME_MEMORY = 0.1
"""Two figures of one memory differ by less: 80 GB on the box are 81,920 MiB or 79.15 GiB to software."""


class Words(NamedTuple):
    """A GPU's name, cut up."""

    core: str
    memory_gb: int | None
    forms: frozenset[str]
    sxm: bool


def cut(name: str, cores: Iterable[str] = ()) -> Words:
    """Cut a name up. ``cores``: those of the table, by which ``a10080gb`` and ``h100nvl`` are told apart."""
    core: list[str] = []
    memory, forms, sxm = None, set(), False
    for token in _tokens(name.lower(), frozenset(cores)):
        number = _MEMORY.fullmatch(token)
        if token in _SXM:
            sxm = True
        elif token in _FORMS:
            forms.add(token)
        elif number and (core or not token.isdecimal()):
            memory = int(number[1])
        elif token not in _NOISE:
            core.append(token)
    joined = "".join(core)
    joined = re.sub(r"^rtx(?=a\d{4}$)", "", joined)  # RTX A6000: the table says a6000
    return Words(joined, memory, frozenset(forms), sxm)


def memory_gb(key: str) -> int:
    """Return the memory in the name of a GPU of the table, in GB; 0 where there is none."""
    return cut(key).memory_gb or 0


def _tokens(name: str, cores: frozenset[str]) -> Iterable[str]:
    for token in re.split(r"[^a-z0-9]+", name):
        known = next((core for core in sorted(cores, key=len, reverse=True) if _continues(token, core)), None)
        yield from (known, token.removeprefix(known)) if known else (token,) if token else ()


def _continues(token: str, core: str) -> bool:
    """Return whether a token is a core and, without a separator, its memory or form factor."""
    rest = token.removeprefix(core)
    if rest in (token, ""):
        return False
    return rest in _FORMS | _SXM or re.fullmatch(r"[1-9]\d{1,2}gb?", rest) is not None


class Match(NamedTuple):
    """What a scheduler's word may mean, and why."""

    candidates: tuple[str, ...]
    """Names in the table, the least memory first, SXM before other form factors."""
    gpu: str | None
    """The first of them where they differ in the form factor at most; None where in the memory, or there is none."""
    note: str


def match(
    gpu_type: str | None, table: Mapping[str, Gpu], features: Iterable[str] = (), memory_gib: float | None = None
) -> Match:
    """Return which GPUs of the table a type may be.

    ``features``: of the node; they may say the memory, or the type where the scheduler has none. ``memory_gib``: as
    the device reports it, where the scheduler knows.
    """
    keys = {key: cut(key) for key in table if key != CPU}
    cores = {words.core for words in keys.values()}
    if gpu_type is None:
        named = sorted({f for f in features if cut(f, cores).core in cores})
        if len({cut(f, cores).core for f in named}) != 1:
            return Match((), None, "the scheduler does not say the type of these GPUs, nor do the node's features")
        found = match(named[0], table, features, memory_gib)
        return Match(found.candidates, found.gpu, f"by the node's feature {named[0]}; {found.note}")
    if MIG.search(gpu_type):
        return Match((), None, f"{gpu_type} is a slice of a GPU (MIG), and training takes whole ones")
    if SHARED.search(gpu_type):
        return Match((), None, f"{gpu_type} is a GPU shared by time slices, and training takes whole ones")
    words = cut(gpu_type, cores)
    same = {key: own for key, own in keys.items() if own.core == words.core}
    if not same:
        return Match((), None, f"{gpu_type} is no GPU in configs/gpus.yaml")
    sized = _of_size(words, list(same), [cut(f, cores) for f in features], memory_gib, table)
    if not sized:
        known = ", ".join(sorted(same))
        return Match((), None, f"{gpu_type} has a memory that no {words.core} in configs/gpus.yaml has ({known})")
    formed = _of_form(words, {key: keys[key] for key in sized})
    ordered = tuple(sorted(formed, key=lambda key: (keys[key].memory_gb or 0, len(keys[key].forms), key)))
    if len({keys[key].memory_gb for key in ordered}) == 1:
        return Match(ordered, ordered[0], f"{gpu_type} is {ordered[0]}")
    return Match(ordered, None, f"{gpu_type} may be {', '.join(ordered[:-1])} or {ordered[-1]}")


def _of_form(words: Words, sized: Mapping[str, Words]) -> list[str]:
    """Return those of the form factor that the name gives; all where it gives none, or none has it."""
    exact = [key for key, own in sized.items() if own.forms == words.forms]
    return exact if exact and (words.forms or words.sxm) else list(sized)


def _of_size(
    words: Words, keys: list[str], features: list[Words], memory_gib: float | None, table: Mapping[str, Gpu]
) -> list[str]:
    """Return those of the memory that the device, the type's name or the features give; all where nothing does."""
    if memory_gib is not None:
        return [key for key in keys if _near(table[key].memory_gib, memory_gib)]
    if words.memory_gb is not None and words.core not in CPU_MEMORY_IN_NAME:
        return [key for key in keys if cut(key).memory_gb == words.memory_gb]
    said = {own.memory_gb for own in features if own.memory_gb and own.core in _MEMORY_WORDS | {"", words.core}}
    by_feature = [key for key in keys if cut(key).memory_gb in said]
    return by_feature if len({cut(key).memory_gb for key in by_feature}) == 1 else keys


def _near(known: float | None, told: float) -> bool:
    return known is not None and abs(known - told) <= SAME_MEMORY * known
