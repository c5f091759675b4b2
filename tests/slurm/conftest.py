"""The lab cluster as a fixture: started once a session, emptied before each test that uses it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import slurm_big
import slurm_lab


def require_slurm() -> None:
    """Skip without SLURM; where it must not be missing (FULLFT_CLUSTER_REQUIRE_SLURM=1), its absence is an error."""
    reason = slurm_lab.missing()
    if reason and os.environ.get("FULLFT_CLUSTER_REQUIRE_SLURM") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def running_lab() -> Iterator[slurm_lab.Lab]:
    """The cluster itself."""
    require_slurm()
    lab = slurm_lab.Lab()
    try:
        lab.up()
        yield lab
    finally:
        lab.down()


@pytest.fixture
def lab(running_lab: slurm_lab.Lab) -> slurm_lab.Lab:
    """The cluster, with no jobs and every node idle."""
    running_lab.reset()
    return running_lab


@pytest.fixture(scope="session")
def big_lab() -> Iterator[slurm_big.BigLab]:
    """A controller with 10,000 nodes, to be looked at only."""
    require_slurm()
    lab = slurm_big.BigLab()
    try:
        lab.up()
        yield lab
    finally:
        lab.down()
