"""Models that `make models` can do without: a test of one that could not be had is skipped."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tools.models import manifest


@functools.cache
def missing_models(root: Path) -> dict[str, str]:
    """File names of the optional vision models that `root` lacks, each with what it costs."""
    return {
        file.path: asset.without
        for asset in manifest.load().assets
        for file in asset.files
        if asset.without and not (root / asset.folder / file.path).is_file()
    }


def require_model(root: Path, file: str) -> None:
    """Skips the test when `file` is an optional model that `root` lacks."""
    if without := missing_models(root).get(file):
        pytest.skip(f"{without}: there is no {file}, and `make models` says why")
