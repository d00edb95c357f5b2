"""Who makes a call, and what it says of its place among others."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from typing import TypeVar

import pytest

from shared.caller import caller, caller_metadata, parse_weights, priority, set_caller
from shared.errors import OutOfRangeError

T = TypeVar("T")


def within(metadata: Mapping[str, str], what: Callable[[], T]) -> T:
    """What is seen in a call with these metadata."""

    def call() -> T:
        set_caller(metadata)
        return what()

    return contextvars.copy_context().run(call)


def test_a_call_names_its_caller_and_its_priority() -> None:
    metadata = {"x-ml-caller": "app", "x-ml-priority": "-3", "other": "1"}
    assert within(metadata, caller) == "app"
    assert within(metadata, priority) == -3
    assert within(metadata, caller_metadata) == {"x-ml-caller": "app", "x-ml-priority": "-3"}
    assert within({}, priority) == 0
    assert within({}, caller_metadata) == {}


@pytest.mark.parametrize("text", ["high", "101", "-101", "1.5", "9" * 5000, "\N{DIGIT ONE}x"])
def test_a_priority_is_a_small_integer(text: str) -> None:
    with pytest.raises(OutOfRangeError, match="must be an integer from -100 to 100") as refused:
        within({"x-ml-priority": text}, priority)
    assert len(refused.value.message) < 200


def test_weights_are_read_by_name() -> None:
    text = " app=4; nightly=0.5;CN=batch,O=Example=2;127.0.0.1=1; "
    assert parse_weights(text) == {
        "app": 4,
        "nightly": 0.5,
        "CN=batch,O=Example": 2,
        "127.0.0.1": 1,
    }
    assert parse_weights("") == {}


@pytest.mark.parametrize("text", ["app", "app=", "=3", "app=0", "app=101", "app=nan", "app=x"])
def test_a_weight_is_a_number_within_limits(text: str) -> None:
    with pytest.raises(ValueError, match=r"'=' and a number from 0\.01 to 100"):
        parse_weights(text)
