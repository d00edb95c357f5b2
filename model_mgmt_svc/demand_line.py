"""The order in which models are loaded for the calls that wait for them, without doing anything.

Calls for different models are grouped: while two models that do not fit together are called in
turns, the calls of the one run, then those of the other, so that there is no load for each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from model_mgmt_svc.eviction import Resident
from shared.model_ids import ModelId


@dataclass
class _Place:
    """A model in the line.

    Attributes:
        since: when its first call that waits has come.
        needs_room: a load of it has not fitted.
    """

    since: float
    needs_room: bool = False


@dataclass
class _Stay:
    """A model in memory: since when, and the time of the load by which it is known."""

    since: float
    loaded_at: int


class Line:
    """The models that calls wait for, the one whose calls have waited longest first.

    A model gives its place up to another one's calls if it has none itself, and either has had none
    for a short while or has been in memory for the longest wait. A model that is called all the
    time is closed when others have waited for that long, and it has been in memory for that long:
    it takes no more calls until it is gone, and comes back in its turn. So under steady calls a
    model is loaded at most once in this time, and none starves; and somebody who calls two models
    alternately waits for the short while alone.

    Args:
        wait_seconds: the longest wait.
        idle_seconds: the short while.
        clock: monotonic seconds.
    """

    def __init__(
        self, *, wait_seconds: float, idle_seconds: float, clock: Callable[[], float]
    ) -> None:
        self._wait_seconds = wait_seconds
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._places: dict[ModelId, _Place] = {}
        # The model that room is being made for: others would take it.
        self._served: ModelId | None = None
        self._stays: dict[ModelId, _Stay] = {}

    def join(self, model_id: ModelId) -> None:
        """Calls wait for a model from now on."""
        self._places.setdefault(model_id, _Place(self._clock()))

    def leave(self, model_id: ModelId) -> None:
        """No call waits for it any more: it is there, cannot be had, or they have gone."""
        self._places.pop(model_id, None)
        if self._served == model_id:
            self._served = None

    def needs_room(self, model_id: ModelId) -> None:
        """A load of a model in the line has not fitted: it waits for its turn."""
        self._places[model_id].needs_room = True
        if self._served == model_id:
            self._served = None

    def take_turn(self, model_id: ModelId) -> bool:
        """Whether a model may be loaded now; if it needs room, nobody else gets it meanwhile.

        While others need room, only the one of them whose calls have waited longest may.
        """
        if self._served is not None:
            return self._served == model_id
        needy = [key for key, place in self._places.items() if place.needs_room]
        if not needy:
            return True
        if model_id != min(needy, key=lambda key: self._places[key].since):
            return False
        self._served = model_id
        return True

    def may_close(self, model_id: ModelId) -> bool:
        """Whether the calls of a model have waited for so long that others are closed for it."""
        return self._clock() - self._places[model_id].since >= self._wait_seconds

    def saw(self, loaded: Iterable[tuple[ModelId, int, float]]) -> None:
        """Notes the models in memory: id, when it was loaded, and how many seconds ago that was.

        The seconds count for models that this has not seen before; later they are counted here,
        since the clock of a machine may jump.
        """
        now, before = self._clock(), self._stays
        self._stays = {}
        for model_id, loaded_at, age in loaded:
            known = before.get(model_id)
            if known is None or known.loaded_at != loaded_at:
                known = _Stay(now - max(age, 0.0), loaded_at)
            self._stays[model_id] = known

    def reopened(self, model_id: ModelId) -> None:
        """A model was closed in vain, since its calls did not end: it stays as if loaded now."""
        if known := self._stays.get(model_id):
            known.since = self._clock()

    def as_idle(self, resident: Resident) -> Resident:
        """A model as one that may go if it has no calls, or with the reason why it stays."""
        if resident.stays or resident.calls:
            return resident
        if resident.model_id in self._places:
            return replace(resident, stays="is called for")
        if resident.idle_seconds >= self._idle_seconds or self._is_old(resident.model_id):
            return resident
        return replace(resident, stays=f"was called within the last {self._idle_seconds:g} s")

    def as_closed(self, resident: Resident) -> Resident:
        """The same of one that may be closed; those that have been in memory for longest go first.

        See `may_close`.
        """
        if resident.calls and not self._is_old(resident.model_id):
            why = f"has not been in memory for {self._wait_seconds:g} s"
            return replace(resident, stays=resident.stays or why)
        closed = self.as_idle(replace(resident, calls=0))
        return replace(closed, idle_seconds=self._age(resident.model_id))

    def _is_old(self, model_id: ModelId) -> bool:
        """Whether it has been in memory for the longest wait, and long enough to be called."""
        return self._age(model_id) >= max(self._wait_seconds, self._idle_seconds)

    def _age(self, model_id: ModelId) -> float:
        """Seconds since it is in memory; 0 if that is not known."""
        stay = self._stays.get(model_id)
        return self._clock() - stay.since if stay else 0.0
