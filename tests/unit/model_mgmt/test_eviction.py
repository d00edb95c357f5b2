"""The choice of the models that make room, against what is promised of it."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_mgmt_svc.eviction import MIB, Choice, Rank, Resident, choose, describe
from shared.model_ids import ModelId


def resident(
    name: str,
    size: int = 10,
    *,
    idle: float = 0,
    calls: int = 0,
    priority: int = 0,
    pinned: bool = False,
    evictable: bool = True,
    stays: str = "",
    device: str = "host",
) -> Resident:
    rank = Rank(pinned, priority)
    return Resident(ModelId(name), {device: size}, idle, calls, rank, evictable, stays)


def names(choice: Choice) -> list[str]:
    assert choice.enough
    return sorted(each.model_id for each in choice.victims)


DEVICES = ("host", "cuda:0")
SIZES = st.integers(0, 100)
RESIDENTS = st.lists(
    st.builds(
        Resident,
        model_id=st.just(ModelId("x")),
        reserved=st.fixed_dictionaries(dict.fromkeys(DEVICES, SIZES)),
        idle_seconds=st.floats(0, 5, allow_nan=False),
        calls=st.integers(0, 1),
        rank=st.builds(Rank, st.booleans(), st.integers(-1, 1)),
        evictable=st.sampled_from([True, True, False]),
        stays=st.sampled_from(["", "", "is being loaded"]),
    ),
    max_size=8,
).map(
    lambda residents: [
        Resident(ModelId(f"m{number}"), *list(vars(each).values())[1:])
        for number, each in enumerate(residents)
    ]
)
AMOUNTS = st.fixed_dictionaries({}, optional=dict.fromkeys(DEVICES, st.integers(0, 250)))
FREE = st.fixed_dictionaries({}, optional=dict.fromkeys(DEVICES, st.integers(-50, 100)))
BELOW = st.none() | st.builds(Rank, st.booleans(), st.integers(-1, 1))


def may_go(each: Resident, below: Rank | None) -> bool:
    """What is promised, in other words than those of the code."""
    forbidden = each.rank.pinned or not each.evictable or each.calls > 0 or each.stays != ""
    return not forbidden and (below is None or each.rank < below)


def fits(needs: dict[str, int], free: dict[str, int], victims: object) -> bool:
    return all(
        size <= free.get(device, 0) + sum(each.reserved[device] for each in victims)  # type: ignore[attr-defined]
        for device, size in needs.items()
        if size
    )


@given(needs=AMOUNTS, free=FREE, residents=RESIDENTS, below=BELOW)
def test_what_is_promised_holds_for_any_models(
    needs: dict[str, int], free: dict[str, int], residents: list[Resident], below: Rank | None
) -> None:
    choice = choose(needs, free, residents, below)
    allowed = [each for each in residents if may_go(each, below)]
    # It finds room exactly where there is some.
    assert choice.enough == fits(needs, free, allowed)
    assert all(each in allowed for each in choice.victims)
    if choice.enough:
        assert fits(needs, free, choice.victims)
        # None is evicted that is not needed.
        for each in choice.victims:
            others = [other for other in choice.victims if other is not each]
            assert not fits(needs, free, others)
        assert not choice.stays
    else:
        assert not choice.victims
        short = [device for device, size in needs.items() if size and size > free.get(device, 0)]
        holders = {each.model_id for each in residents if any(each.reserved[d] for d in short)}
        assert {stay.resident.model_id for stay in choice.stays} == holders
        assert all(stay.why for stay in choice.stays)


@given(residents=RESIDENTS, need=st.integers(1, 250))
def test_one_that_stays_is_worth_more_than_one_that_goes(
    residents: list[Resident], need: int
) -> None:
    """On one device: no victim could be spared for a model that goes before it."""

    def worth(each: Resident) -> tuple[float, ...]:
        return (each.rank.priority, -math.floor(each.idle_seconds), -each.reserved["host"])

    choice = choose({"host": need}, {}, residents)
    kept = [each for each in residents if may_go(each, None) and each not in choice.victims]
    for victim, other in itertools.product(choice.victims, kept):
        if worth(other) < worth(victim):
            # It is kept only since it does not make enough room in the victim's place.
            swapped = [other, *(each for each in choice.victims if each is not victim)]
            assert not fits({"host": need}, {}, swapped)


@given(residents=RESIDENTS, needs=AMOUNTS)
def test_the_order_of_the_models_does_not_matter(
    residents: list[Resident], needs: dict[str, int]
) -> None:
    assert names_or_none(choose(needs, {}, residents)) == names_or_none(
        choose(needs, {}, residents[::-1])
    )


def names_or_none(choice: Choice) -> list[str] | None:
    return names(choice) if choice.enough else None


def test_the_least_recently_used_goes() -> None:
    models = [resident("new", idle=70), resident("old", idle=90)]
    assert names(choose({"host": 10}, {"host": 0}, models)) == ["old"]


def test_among_equally_recent_ones_the_larger_goes() -> None:
    models = [
        resident("small", 10, idle=89.9),
        resident("large", 30, idle=89.1),
        resident("newer", 90, idle=88),
    ]
    assert names(choose({"host": 10}, {}, models)) == ["large"]


def test_lower_priority_goes_before_all_else() -> None:
    models = [
        resident("old", idle=99, priority=1),
        resident("new", idle=1),
        resident("urgent", idle=100, priority=9),
    ]
    assert names(choose({"host": 10}, {}, models)) == ["new"]
    assert names(choose({"host": 20}, {}, models)) == ["new", "old"]


def test_a_small_old_model_is_spared_where_a_larger_one_has_to_go_anyway() -> None:
    models = [resident("small", 5, idle=99), resident("large", 50, idle=91)]
    assert names(choose({"host": 40}, {"host": 0}, models)) == ["large"]
    assert names(choose({"host": 55}, {"host": 0}, models)) == ["large", "small"]


def test_what_fits_evicts_nothing() -> None:
    assert not choose({"host": 10}, {"host": 10}, [resident("a")]).victims
    assert not choose({"host": 0}, {"host": -5}, [resident("a")]).victims


def test_models_on_another_device_do_not_help() -> None:
    models = [resident("on host", 90), resident("on card", 40, device="cuda:0", idle=91)]
    free = {"host": 50, "cuda:0": 10}
    assert names(choose({"host": 20, "cuda:0": 30}, free, models)) == ["on card"]
    assert not choose({"cuda:0": 60}, free, models).enough


def test_nothing_goes_where_one_device_cannot_have_room() -> None:
    models = [resident("on host", 90)]
    choice = choose({"host": 20, "cuda:0": 30}, {"host": 0, "cuda:0": 10}, models)
    assert not choice.enough
    assert not choice.victims


def test_a_budget_that_is_overdrawn_has_to_be_refilled_first() -> None:
    models = [resident("a", 30, idle=99), resident("b", 30, idle=98)]
    assert names(choose({"host": 10}, {"host": -25}, models)) == ["a", "b"]


@pytest.mark.parametrize(
    ("below", "victims"),
    [
        (Rank(priority=1), ["low"]),
        (Rank(priority=2), ["low", "middle"]),
        (Rank(pinned=True), ["low", "middle"]),
        (None, ["low", "middle"]),
    ],
)
def test_an_unasked_load_takes_from_lower_ranks_only(
    below: Rank | None, victims: list[str]
) -> None:
    models = [
        resident("low", priority=0),
        resident("middle", priority=1),
        resident("pinned", pinned=True),
    ]
    for need in (10, 20):
        choice = choose({"host": need}, {}, models, below)
        if need <= 10 * len(victims):
            assert names(choice) == victims[: need // 10]
        else:
            assert not choice.enough
    if below == Rank(priority=1):
        choice = choose({"host": 20}, {}, models, below)
        assert "middle holds 1 MiB and is loaded already" in describe(choice.stays)


def test_the_refusal_tells_what_holds_memory_and_why_it_stays() -> None:
    models = [
        resident("org/pinned", 5 * MIB, pinned=True),
        resident("org/none", 4 * MIB, evictable=False),
        resident("org/busy", 3 * MIB, calls=2),
        resident("org/called", 3 * MIB - 1, calls=1),
        resident("org/loading", 2 * MIB, stays="is being loaded"),
        resident("org/idle", MIB),
        resident("org/card", MIB, device="cuda:0"),
    ]
    choice = choose({"host": 20 * MIB}, {"host": 0}, models)
    assert not choice.enough
    assert describe(choice.stays) == (
        "org/pinned holds 5 MiB and is pinned; "
        "org/none holds 4 MiB and has the option evict=none; "
        "org/busy holds 3 MiB and answers 2 calls; org/called holds 3 MiB and answers 1 call; "
        "org/loading holds 2 MiB and is being loaded; "
        "org/idle holds 1 MiB and could go, but that is not enough"
    )
    assert describe(choose({"cuda:0": 9 * MIB}, {}, models).stays) == (
        "org/card holds 1 MiB of cuda:0 and could go, but that is not enough"
    )
    assert describe(choose({"host": 1}, {}, []).stays) == ""
