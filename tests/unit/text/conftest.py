"""Tiny models, made once for all tests."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support import tiny_models, tiny_text
from tests.support.folders import made_once, shared_by_workers
from tests.support.text_pipeline import Tiny
from text_svc.convert.__main__ import convert as run_conversion
from text_svc.convert.spec import (
    ConversionSpec,
    Weights,
)

_ROOT = logging.getLogger()
_LEVEL = _ROOT.level


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """OpenVINO limits logging to errors, and a conversion that fails does not take that back."""
    filters = _ROOT.filters[:]
    _ROOT.setLevel(_LEVEL)
    yield
    _ROOT.setLevel(_LEVEL)
    _ROOT.filters[:] = filters


def convert(source: Path, target: Path, weights: Weights = "float") -> Path:
    """Runs a conversion here, without a process of its own."""
    run_conversion(
        ConversionSpec(
            model_id="tiny",
            scratch=target.parent,
            pipeline="text-generation",
            source=source,
            target=target,
            weights=weights,
            log_level="INFO",
            log_style="text",
        )
    )
    return target


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's folder of safetensors."""
    folder = shared_by_workers(tmp_path_factory) / "unit" / "llama"
    return made_once(folder, tiny_text.save_llama)


@pytest.fixture(scope="session")
def converted_llama(llama: Path) -> Path:
    """The same, converted to OpenVINO."""
    folder = llama.parent / "converted" / "text-generation-float-1"
    return made_once(folder, partial(convert, llama))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Builds a tiny model once, and returns its folder."""
    root = shared_by_workers(tmp_path_factory) / "unit" / "tiny"

    @functools.cache
    def folder(name: str) -> Path:
        return made_once(root / name, partial(tiny_models.build, name))

    return folder
