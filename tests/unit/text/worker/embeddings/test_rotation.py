"""Whose text is next."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from text_svc.worker.embeddings.rotation import Rotation


@dataclass(eq=False)
class Call:
    caller: str
    texts: int
    tokens: int = 10
    priority: int = 0
    name: str = ""


def rotation(*calls: Call, **weights: float) -> Rotation[Call]:
    made: Rotation[Call] = Rotation(weights)
    for call in calls:
        made.add(call)
    return made


def take(rotation: Rotation[Call]) -> Call:
    call = rotation.first()
    call.texts -= 1
    rotation.served(call, call.tokens, waits=call.texts > 0)
    return call


def test_callers_take_turns_by_tokens() -> None:
    long, short = Call("long", 50, 100), Call("short", 50, 20)
    waiting = rotation(long, short)
    taken = Counter(take(waiting).caller for _ in range(24))
    assert taken == {"long": 4, "short": 20}


def test_a_weight_multiplies_the_tokens() -> None:
    waiting = rotation(Call("x", 50), Call("y", 50), x=3)
    taken = Counter(take(waiting).caller for _ in range(40))
    assert taken == {"x": 30, "y": 10}


def test_who_comes_anew_is_next_but_has_nothing_to_catch_up() -> None:
    waiting = rotation(*(Call("x", 1) for _ in range(500)))
    for _ in range(100):
        take(waiting)
    waiting.add(Call("y", 10))
    first = [take(waiting).caller for _ in range(4)]
    assert first.count("y") == 2
    assert waiting.callers == 2


def test_the_calls_of_a_caller_take_turns_within_a_priority() -> None:
    calls = [Call("x", 2, name="a"), Call("x", 1, priority=1, name="b"), Call("x", 1, name="c")]
    waiting = rotation(*calls)
    assert [take(waiting).name for _ in range(4)] == ["b", "a", "c", "a"]
    assert len(waiting) == 0
    assert waiting.callers == 0


@pytest.mark.parametrize("left", [0, 1])
def test_a_call_that_leaves_is_never_next(left: int) -> None:
    calls = [Call("x", 3, name="x"), Call("y", 3, name="y")]
    waiting = rotation(*calls)
    take(waiting)
    assert waiting.remove(calls[left])
    assert not waiting.remove(calls[left])
    stays = calls[1 - left]
    assert waiting.all() == [stays]
    while len(waiting):
        assert take(waiting) is stays
    waiting.add(calls[left])  # it may come again
    assert take(waiting) is calls[left]


def test_calls_that_have_left_take_no_memory() -> None:
    waiting = rotation(Call("x", 1))
    for number in range(10_000):
        call = Call(f"y{number % 3}", 1)
        waiting.add(call)
        assert waiting.remove(call)
    assert len(waiting._order) < 200
    assert take(waiting).caller == "x"
