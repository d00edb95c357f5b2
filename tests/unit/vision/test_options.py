"""Options of calls: their names, ranges and sources."""

from __future__ import annotations

import pytest

from shared.errors import OutOfRangeError, ServiceError, UnknownOptionError
from vision_svc.options import (
    Choice,
    Count,
    Numbers,
    Ratio,
    Score,
    frame_policy_of_call,
    numbers,
    options_of_call,
    parse_options,
)

KNOWN = (Count("max_faces", 1, 16), Score("min_score", 0.5), Choice("model", ("full", "lite")))


def test_defaults() -> None:
    assert parse_options(KNOWN) == {"max_faces": 1, "min_score": 0.5, "model": "full"}


def test_later_sources_win_and_names_are_lenient() -> None:
    values = parse_options(KNOWN, {"max-faces": "2", "MODEL": "Lite"}, {"max_faces": "3"})
    assert values == {"max_faces": 3, "min_score": 0.5, "model": "lite"}


@pytest.mark.parametrize(
    ("key", "text", "error"),
    [
        ("max_faces", "0", OutOfRangeError),
        ("max_faces", "99999999999999999999", OutOfRangeError),
        ("max_faces", "²", OutOfRangeError),
        ("max_faces", "-1", OutOfRangeError),
        ("max_faces", "", OutOfRangeError),
        ("min_score", "nan", OutOfRangeError),
        ("min_score", "inf", OutOfRangeError),
        ("min_score", "x", OutOfRangeError),
        ("model", "huge", UnknownOptionError),
        ("max_hands", "1", UnknownOptionError),
        ("", "", UnknownOptionError),
    ],
)
def test_options_that_are_refused(key: str, text: str, error: type[ServiceError]) -> None:
    with pytest.raises(error):
        parse_options(KNOWN, {key: text})


SHAPES = (Numbers("scales", "1", 0.1, 4.0, 3), Ratio("aspect", "9:16"), Count("ahead", 0, 30, 0))


def test_numbers_ratios_and_counts_from_0() -> None:
    assert parse_options(SHAPES) == {"scales": "1", "aspect": "9:16", "ahead": 0}
    values = parse_options(SHAPES, {"scales": "0.5, 1,2,1", "aspect": " 4 : 05 ", "ahead": "0"})
    assert numbers(str(values["scales"])) == (0.5, 1.0, 2.0)
    assert (values["aspect"], values["ahead"]) == ("4:5", 0)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *(("scales", text) for text in ("", ",", "1,", "x", "nan", "0.05", "5", "1,2,3,4")),
        *(("aspect", text) for text in ("", "9", "9:16:1", "0:1", "1:101", "a:b", "-1:2", "9.5:1")),
        *(("ahead", text) for text in ("", "-1", "31", "1.5")),
    ],
)
def test_numbers_and_ratios_that_are_refused(key: str, text: str) -> None:
    with pytest.raises(OutOfRangeError, match=key) as refused:
        parse_options(SHAPES, {key: text})
    assert refused.value.field == key


def test_only_prefixed_metadata_of_a_call_are_options() -> None:
    call = {"vision-max-faces": "2", "user-agent": "x", "x-request-id": "1"}
    assert options_of_call(call) == {"max-faces": "2"}


def test_frame_policies() -> None:
    assert frame_policy_of_call({}) == "every"
    assert frame_policy_of_call({"frame-policy": "Latest"}) == "latest"
    with pytest.raises(UnknownOptionError, match="every, latest"):
        frame_policy_of_call({"frame-policy": "newest"})
