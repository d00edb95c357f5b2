"""Options of calls: their names, ranges and sources."""

from __future__ import annotations

import pytest

from shared.errors import OutOfRangeError, ServiceError, UnknownOptionError
from vision_svc.options import (
    Choice,
    Count,
    Score,
    frame_policy_of_call,
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


def test_only_prefixed_metadata_of_a_call_are_options() -> None:
    call = {"vision-max-faces": "2", "user-agent": "x", "x-request-id": "1"}
    assert options_of_call(call) == {"max-faces": "2"}


def test_frame_policies() -> None:
    assert frame_policy_of_call({}) == "every"
    assert frame_policy_of_call({"frame-policy": "Latest"}) == "latest"
    with pytest.raises(UnknownOptionError, match="every, latest"):
        frame_policy_of_call({"frame-policy": "newest"})
