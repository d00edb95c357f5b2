"""Places that callers share."""

from __future__ import annotations

import pytest

from shared.errors import QueueFullError, ServiceError
from shared.places import Place, Places


class Guests:
    """Callers that leave when they are asked to, if they may."""

    def __init__(self, limit: int) -> None:
        self.places = Places(limit, f"all {limit} are taken")
        self.left: list[str] = []
        self.errors: list[ServiceError] = []

    def take(self, caller: str, name: str = "", *, stays: bool = False) -> Place:
        def leave(error: ServiceError) -> bool:
            if not stays:
                self.left.append(name)
                self.errors.append(error)
            return not stays

        return self.places.take(caller, leave)


def test_one_caller_may_take_all_and_no_more() -> None:
    guests = Guests(4)
    taken = [guests.take("a") for _ in range(4)]
    with pytest.raises(QueueFullError, match="all 4 are taken") as refused:
        guests.take("a")
    assert refused.value.metadata == {"limit": "4"}
    guests.places.free(taken[0])
    guests.places.free(taken[0])  # once counts
    guests.take("a")
    assert guests.places.taken == 4


def test_another_caller_gets_up_to_half() -> None:
    guests = Guests(4)
    for number in range(4):
        guests.take("a", f"a{number}")
    guests.take("b", "b0")
    guests.take("b", "b1")
    assert guests.left == ["a3", "a2"], "the newest leave"
    assert "more than its half, 2 of 4" in guests.errors[0].message
    for caller in ("a", "b", "c"):
        # Nobody has more than half now.
        with pytest.raises(QueueFullError):
            guests.take(caller)
    assert guests.places.taken == 4


def test_what_cannot_leave_stays() -> None:
    guests = Guests(3)
    guests.take("a", "a0")
    guests.take("a", "a1", stays=True)
    guests.take("a", "a2", stays=True)
    guests.take("b")
    assert guests.left == ["a0"]
    guests = Guests(2)
    for _ in range(2):
        guests.take("a", stays=True)
    with pytest.raises(QueueFullError):
        guests.take("b")


def test_a_single_place_is_nobody_s_to_take_away() -> None:
    guests = Guests(1)
    guests.take("a")
    with pytest.raises(QueueFullError):
        guests.take("b")
    assert not guests.left


def test_what_waits_is_shared_by_all_callers_by_weight() -> None:
    guests = Guests(8)
    guests.places = Places(8, "all 8 are taken", weights={"heavy": 2})
    for number in range(8):
        guests.take("a", f"a{number}")
    for number in range(4):
        guests.take("b", f"b{number}")
    assert guests.left == ["a7", "a6", "a5", "a4"]
    assert "more than its share, 4 of 8" in guests.errors[0].message
    guests.take("c", "c0")  # 2 for each of the three
    guests.take("c", "c1")
    assert guests.left[4:] == ["a3", "b3"], "whoever is furthest beyond"
    with pytest.raises(QueueFullError):
        guests.take("c")
    guests.take("heavy", "h0")  # 3 of 8, and 1 for each of the others
    guests.take("heavy", "h1")
    guests.take("heavy", "h2")
    with pytest.raises(QueueFullError):
        guests.take("heavy")
    assert guests.places.taken == 8


def test_there_are_at_most_as_many_callers_as_places() -> None:
    guests = Guests(3)
    guests.places = Places(3, "all 3 are taken", weights={})
    for name in ("a", "b", "c"):
        guests.take(name)
    with pytest.raises(QueueFullError, match="all 3 are taken"):
        guests.take("d")
    assert not guests.left
