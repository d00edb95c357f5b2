"""What a failed conversion leaves behind: a stored refusal, or nothing if the cause may pass."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import openvino as ov
import pytest
import torch

from shared.errors import OutOfMemoryError, ResourceExhaustedError, ServiceError
from tests.support.text_pipeline import Tiny
from text_svc.convert import decoder, encoder
from text_svc.convert.__main__ import convert
from text_svc.convert.refused import refusal
from text_svc.convert.spec import ConversionSpec
from text_svc.formats.load_errors import loading_errors
from text_svc.formats.manifest import PART_PREFIX, Manifest

PASSING: list[tuple[Exception, type[ServiceError]]] = [
    (MemoryError(), OutOfMemoryError),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemoryError),
    (RuntimeError("Exception from core.cpp: std::bad_alloc"), OutOfMemoryError),
    (OSError(errno.ENOSPC, "No space left on device"), ResourceExhaustedError),
]


def failing(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    return fail


def converted(source: Path, target: Path, pipeline: str) -> Manifest | None:
    spec = ConversionSpec(
        model_id="tiny",
        scratch=target.parent,
        pipeline=pipeline,
        source=source,
        target=target,
        weights="float",
        log_level="INFO",
        log_style="text",
    )
    with loading_errors("tiny", source):
        convert(spec)
    return Manifest.read(target)


@pytest.fixture(params=["text-generation", "feature-extraction"])
def case(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tiny: Tiny, llama: Path
) -> tuple[Path, str, Callable[[Exception], None]]:
    """A model, its pipeline, and what makes its conversion fail."""
    if request.param == "text-generation":
        place: tuple[Any, str] = (decoder, "export_from_model")
        source = llama
    else:
        place, source = (encoder.ov, "convert_model"), tiny("bert")
    return source, request.param, lambda error: monkeypatch.setattr(*place, failing(error))


@pytest.mark.parametrize(("error", "wanted"), PASSING, ids=lambda each: str(each)[:40])
def test_want_of_memory_or_space_is_said_and_not_kept(
    case: Any, tmp_path: Path, error: Exception, wanted: type[ServiceError]
) -> None:
    source, pipeline, fail_with = case
    target = tmp_path / "converted" / "one"
    fail_with(error)
    with pytest.raises(wanted):
        converted(source, target, pipeline)
    assert not target.exists()


def test_a_model_that_cannot_be_converted_is_remembered(case: Any, tmp_path: Path) -> None:
    source, pipeline, fail_with = case
    fail_with(RuntimeError("an operator that nobody knows"))
    manifest = converted(source, tmp_path / "converted" / "one", pipeline)
    assert manifest is not None
    assert manifest.refused == "RuntimeError: an operator that nobody knows"


class Strange(torch.nn.Module):
    """It has an operation that OpenVINO does not know."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(numbers)


class Untraceable(torch.nn.Module):
    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        raise ValueError("no trace")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            Strange(),
            "OpConversionFailure: No conversion rule found for operations: aten::special_bessel_j0",
        ),
        (Untraceable(), "RuntimeError: no trace"),
    ],
)
def test_a_refusal_says_why_and_not_where_openvino_was_made(
    module: torch.nn.Module, said: str
) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # OpenVINO has classes of its own
        ov.convert_model(module, example_input=torch.ones(2))
    assert str(refusal(caught.value)) == said


def test_what_a_killed_conversion_left_may_go_in_the_same_moment(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service that started it removes it, too."""
    source, pipeline, fail_with = case
    fail_with(RuntimeError("an operator that nobody knows"))
    leftover = tmp_path / "converted" / f"{PART_PREFIX}1-x"
    leftover.mkdir(parents=True)
    glob = Path.glob

    def found_and_gone(folder: Path, pattern: str) -> list[Path]:
        found = list(glob(folder, pattern))
        shutil.rmtree(leftover, ignore_errors=True)
        return found

    monkeypatch.setattr(Path, "glob", found_and_gone)
    assert converted(source, tmp_path / "converted" / "one", pipeline)
