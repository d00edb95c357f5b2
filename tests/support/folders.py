"""Folders of tests that do not outlive what they are for."""

from __future__ import annotations

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
