"""Folders of tests that do not outlive what they are for."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Makes a folder with a name.
MakeFolder = Callable[[str], Path]


@contextmanager
def folders(factory: pytest.TempPathFactory) -> Iterator[MakeFolder]:
    """Makes folders that are gone at the end. pytest itself keeps such ones until a run's end."""
    made: list[Path] = []

    def make(name: str) -> Path:
        made.append(factory.mktemp(name))
        return made[-1]

    try:
        yield make
    finally:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)


def shared_by_workers(factory: pytest.TempPathFactory) -> Path:
    """A folder of this run that the workers of pytest-xdist share."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder that one process makes, while the others wait for it.

    Args:
        folder: the folder.
        make: fills the folder that it is given, which becomes this one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            half = folder.with_name(f"{folder.name}.half")
            shutil.rmtree(half, ignore_errors=True)  # of one that failed
            make(half)
            half.rename(folder)
    return folder
