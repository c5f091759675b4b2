"""Fixtures of the training tests: runs of two real processes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from training_run import Shape, Training

if any(importlib.util.find_spec(name) is None for name in ("torch", "deepspeed", "transformers", "accelerate")):
    collect_ignore_glob = ["test_*.py"]  # the extra `train` is not installed


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Training:
    """A run whose data is prepared; nothing has been trained. Tests copy it."""
    training = Training(tmp_path_factory.mktemp("prepared") / "run", cache, Shape())
    training.prepare()
    return training


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, prepared: Training) -> Iterator[Training]:
    """A run of `STEPS` steps that nothing disturbs; tests read it and copy it, none changes it."""
    training = prepared.copy(tmp_path_factory.mktemp("reference") / "run")
    assert training.train() == [0, 0], training.log()
    yield training
    training.kill()


@pytest.fixture
def new_training(tmp_path: Path, cache: Path) -> Iterator[Callable[..., Training]]:
    made: list[Training] = []

    def make(name: str = "run", **shape: Any) -> Training:
        training = Training(tmp_path / name, cache, Shape(**shape))
        made.append(training)
        training.prepare()
        return training

    yield make
    for training in made:
        training.kill()
