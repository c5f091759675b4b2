"""What a pool's GPUs are to a question for sites, and what a job says to get those and no others."""

from __future__ import annotations

from typing import NamedTuple

from fullft_cluster.config import Config
from fullft_cluster.hardware import CPU, Cluster, clusters, load_cluster
from fullft_cluster.inventory.gpu_names import cut, memory_gb
from fullft_cluster.inventory.nouns import Inventory, Pool

_NAMES = {"slurm": "SLURM", "kubernetes": "Kubernetes"}


class Question(NamedTuple):
    """Which sites are there for a profile?"""

    inventory: Inventory
    profile: Cluster
    config: Config
    chosen: bool
    """The user named the profile."""

    @property
    def on_cpus(self) -> bool:
        """Return whether the nodes are wanted for their CPUs."""
        return self.chosen and self.profile.gpu == CPU


def gpu_of(asked: Question, pool: Pool) -> tuple[str | None, str]:
    """Return the GPU of a pool in our table and how that was found, or None and why not."""
    profile, of = asked.profile, f"{_NAMES[asked.inventory.source]}'s GPU {pool.gpu_type or 'without a type'}"
    if asked.on_cpus:
        return CPU, ""
    if pool.gpu is not None and not asked.chosen:
        return pool.gpu, ""
    if pool.gpu is not None and profile.gpu in pool.candidates:
        return profile.gpu, ""
    if profile.gpu in pool.candidates:
        others = " or ".join(name for name in pool.candidates if name != profile.gpu)
        how = f"as the profile {profile.name} says" if asked.chosen else f"as in the default profile {profile.name}"
        return profile.gpu, f"{of} is taken for {profile.gpu}, {how}; for {others}, name a profile by --cluster"
    if asked.chosen and not pool.candidates and pool.gpu_type in (None, profile.slurm_gpu_type):
        return profile.gpu, f"{of} is taken for {profile.gpu}, as the profile {profile.name} says"
    if asked.chosen and pool.candidates:
        return (
            None,
            f"{pool.names} has {' or '.join(pool.candidates)}, and the profile {profile.name} is for {profile.gpu}",
        )
    if pool.candidates:
        others = " or ".join(pool.candidates[1:])
        least = f"{of} is taken for {pool.candidates[0]}, the one with least memory"
        return pool.candidates[0], f"{least}; for {others}, name a profile by --cluster"
    return None, f"{pool.names}: {pool.note}"


def profile_for(asked: Question, gpu: str) -> Cluster:
    """Return the profile whose bandwidths and environment hold for a GPU: the given one, or the shipped one for it."""
    if asked.chosen or asked.profile.gpu == gpu:
        return asked.profile
    if gpu in clusters():
        return load_cluster(gpu)
    shipped = (load_cluster(name) for name in clusters())
    return next((profile for profile in shipped if profile.gpu == gpu), asked.profile)


def slurm_gpu_type(asked: Question, pool: Pool) -> str | None:
    """Return the type by which SLURM is asked for a pool's GPUs; None for a count alone."""
    if asked.on_cpus:
        return asked.profile.slurm_gpu_type
    return pool.gpu_type if asked.inventory.source == "slurm" else None


def constraint(asked: Question, pools: list[Pool], gpu: str, here: set[str]) -> tuple[str | None, str]:
    """Return a feature that keeps a job off nodes whose GPUs have its type and less memory, and words on it."""
    if asked.inventory.source != "slurm" or asked.on_cpus or asked.config.slurm.constraint:
        return None, ""
    mine = pools[0]
    others = [
        pool
        for pool in asked.inventory.pools
        if pool.gpus_per_node
        and mine.gpu_type in (pool.gpu_type, None)
        and pool.candidates != mine.candidates
        and (not here or here & set(pool.partitions))
        and (not pool.candidates or memory_gb(pool.candidates[0]) < memory_gb(gpu))
    ]
    if not others:
        return None, ""
    own = [name for name in mine.features if all(name in pool.features for pool in pools)]
    only = [name for name in own if not any(name in pool.features for pool in others)]
    names = ", ".join(pool.names for pool in others)
    if not only:
        return None, f"the GPUs of {names} have the same type and may have less memory: set slurm.exclude"
    feature = max(only, key=lambda name: cut(name).core in gpu and cut(name).memory_gb is not None)
    return feature, f"the GPUs of {names} have the same type and may have less memory: the job asks for {feature}"
