"""Which models go when a load needs memory that others hold: the rule, without doing anything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shared.model_ids import ModelId

MIB = 1 << 20
# Models that have been idle for the same number of whole steps count as equals: the larger one goes
# first then, which leaves room for more.
IDLE_STEP_SECONDS = 1.0


@dataclass(frozen=True, order=True)
class Rank:
    """How much a model's wish weighs against others; a pinned one more than any priority."""

    pinned: bool = False
    priority: int = 0


@dataclass(frozen=True)
class Resident:
    """A model in the memory of the replica that needs room.

    Attributes:
        reserved: its bytes, by device.
        idle_seconds: since its last call on any replica has ended, or it was loaded.
        calls: those that it answers now, on all replicas.
        rank: its options pin and priority.
        evictable: false with the option evict=none.
        stays: why it may not go for another reason, as in "is being loaded"; empty if it may.
    """

    model_id: ModelId
    reserved: Mapping[str, int] = field(default_factory=dict)
    idle_seconds: float = 0.0
    calls: int = 0
    rank: Rank = Rank()
    evictable: bool = True
    stays: str = ""


@dataclass(frozen=True)
class Stay:
    """A model that holds memory, and why it does not make room, as in "is pinned"."""

    resident: Resident
    why: str


@dataclass(frozen=True)
class Choice:
    """What a load may do.

    Attributes:
        victims: the models that make room together; each of them is needed.
        stays: where there cannot be room: the models that hold what is missing, largest first.
        enough: whether there is room once the victims have gone.
        later: where there is not: whether there would be if those that answer calls could go, and
            those that stay for a reason that is not their own option.
        waits_for: where there is not: the models that are in the way of a load whose turn is
            before theirs, while operations on them are in flight.
    """

    victims: Sequence[Resident] = ()
    stays: Sequence[Stay] = ()
    enough: bool = True
    later: bool = False
    waits_for: Sequence[ModelId] = ()


def choose(
    needs: Mapping[str, int],
    free: Mapping[str, int],
    residents: Iterable[Resident],
    below: Rank | None = None,
) -> Choice:
    """Chooses the models that go, so that a load gets what it needs on each device.

    Models of lower priority go first, then those that have been idle for longer, of equals the
    larger. One that is pinned, has evict=none or answers calls never goes. None goes where all
    together do not make enough room, and none that turns out not to be needed.

    Args:
        needs: bytes of the load, by device.
        free: bytes that nobody has reserved, by device; may be negative.
        residents: the other models.
        below: only models of a lower rank may go: the load was not asked for by a caller.
    """
    missing = {device: size - free.get(device, 0) for device, size in needs.items() if size}
    missing = {device: size for device, size in missing.items() if size > 0}
    holders = [each for each in residents if _size(each, missing) > 0]
    may_go = [each for each in holders if not _why_it_stays(each, below)]
    may_go.sort(key=lambda each: _order(each, missing))
    victims: list[Resident] = []
    for each in may_go:
        lacking = _lacking(missing, victims)
        if _size(each, lacking) > 0:
            victims.append(each)
    if _lacking(missing, victims):
        holders.sort(key=lambda each: (-_size(each, missing), each.model_id))
        stays = [Stay(each, _why(each, below)) for each in holders]
        could_go = [each for each in holders if not _never_goes(each, below)]
        return Choice((), stays, enough=False, later=not _lacking(missing, could_go))
    for each in reversed(victims):  # those that are worth most first
        others = [other for other in victims if other is not each]
        if not _lacking(missing, others):
            victims = others
    return Choice(victims)


def describe(stays: Sequence[Stay]) -> str:
    """The models that hold memory, and why each of them stays; empty if there are none."""
    return "; ".join(
        f"{stay.resident.model_id} holds {_told(stay.resident.reserved)} and {stay.why}"
        for stay in stays
    )


def _lacking(missing: Mapping[str, int], victims: Iterable[Resident]) -> dict[str, int]:
    """What is missing still when the victims are gone."""
    victims = list(victims)
    left = {
        device: size - sum(each.reserved.get(device, 0) for each in victims)
        for device, size in missing.items()
    }
    return {device: size for device, size in left.items() if size > 0}


def _size(resident: Resident, devices: Iterable[str]) -> int:
    return sum(resident.reserved.get(device, 0) for device in devices)


def _order(resident: Resident, missing: Mapping[str, int]) -> tuple[int, int, int, ModelId]:
    """Those that go first are the least."""
    steps = math.floor(resident.idle_seconds / IDLE_STEP_SECONDS)
    return resident.rank.priority, -steps, -_size(resident, missing), resident.model_id


def _never_goes(resident: Resident, below: Rank | None) -> bool:
    return bool(_why_it_stays(replace(resident, calls=0, stays=""), below))


def _why_it_stays(resident: Resident, below: Rank | None) -> str:
    if resident.rank.pinned:
        return "is pinned"
    if not resident.evictable:
        return "has the option evict=none"
    if resident.calls:
        return f"answers {resident.calls} call{'s' if resident.calls > 1 else ''}"
    if resident.stays:
        return resident.stays
    if below is not None and resident.rank >= below:
        return "is loaded already"
    return ""


def _why(resident: Resident, below: Rank | None) -> str:
    return _why_it_stays(resident, below) or "could go, but that is not enough"


def _told(reserved: Mapping[str, int]) -> str:
    parts = [
        f"{-(-size // MIB)} MiB" + ("" if device == "host" else f" of {device}")
        for device, size in reserved.items()
        if size
    ]
    return " and ".join(parts)
