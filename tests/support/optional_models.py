"""Optional models: a test of one that `make models` could not fetch is skipped."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tools.models import manifest

# Files that may be beside the repository, such as a real .litertlm.
SHARED = Path(__file__).resolve().parents[3] / "shared"


@functools.cache
def missing_models(root: Path) -> dict[str, str]:
    """Optional models of vision that are missing in `root`, each with what is off without it."""
    return {
        file.path: asset.without
        for asset in manifest.load().assets
        for file in asset.files
        if asset.kind == "vision"
        and asset.without
        and not (root / asset.folder / file.path).is_file()
    }


def require_model(root: Path, file: str) -> None:
    """Skips the test if `file` is an optional model that is missing in `root`."""
    if without := missing_models(root).get(file):
        pytest.skip(f"{without}: there is no {file}, and `make models` says why")


def require_asset(root: Path, name: str) -> Path:
    """The folder of an asset in `root`. Skips the test if it is an optional one that is missing."""
    asset = manifest.load().asset(name)
    for file in asset.files:
        if not (root / asset.folder / file.path).is_file():
            pytest.skip(f"{asset.without or name}: there is no {file.path}; `make models` says why")
    return root / asset.folder
