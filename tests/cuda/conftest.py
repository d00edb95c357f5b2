"""The device of these tests. Without a CUDA device they are skipped, and say why.

The variable CUDA_TESTS makes them run in any case: "required" on the CUDA device, so that a missing
one is a failure, and "cpu" on the CPU, which checks everything but what only a device has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cuda.device import missing
from tests.support import tiny_models, tiny_text
from tests.support.folders import MakeFolder
from tests.support.text_service import TextService, text_service

WISH = os.environ.get("CUDA_TESTS", "")
LLAMA = "tiny/llama"
ENCODERS = ("bert", "bert-ner", "bert-rank", "t5")


@pytest.fixture(scope="session", autouse=True)
def device() -> str:
    """What models are loaded on."""
    if WISH == "cpu":
        return "cpu"
    if why := missing():
        (pytest.fail if WISH == "required" else pytest.skip)(why)
    return "cuda"


@pytest.fixture
def on_cuda(device: str) -> None:
    """For tests of what only a CUDA device has."""
    if device != "cuda":
        pytest.skip("needs a CUDA device, and CUDA_TESTS is cpu")


@pytest.fixture(scope="module")
def models(device: str, module_folder: MakeFolder) -> Path:
    """Tiny models, by their ids."""
    del device  # nothing is made without one
    folder = module_folder("models")
    tiny_text.save_llama(folder / LLAMA)
    for name in ENCODERS:
        tiny_models.build(name, folder / "tiny" / name)
    return folder


@pytest.fixture(scope="module")
def service(models: Path, module_folder: MakeFolder) -> Iterator[TextService]:
    with text_service(models, module_folder("service")) as running:
        yield running


@pytest.fixture(scope="module")
def text_service_with(models: Path, module_folder: MakeFolder) -> Callable[..., object]:
    """Starts a service with other settings: `text_service_with(NAME="value")`."""
    return lambda **settings: text_service(models, module_folder("service"), settings)
