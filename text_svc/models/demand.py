"""Calls that wait for a model which the control plane loads for them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from shared.caller import Weights, caller
from shared.errors import ServiceError
from shared.model_ids import ModelId
from shared.places import Places
from shared.single_flight import SharedWork, SingleFlight

# Asks for a model, for a call; returns when it is READY, or raises why it cannot be had.
Want = Callable[[ModelId, str], Awaitable[None]]


class Demand:
    """Brings models for the calls that need them: one request for each model and RPC.

    Args:
        want: asks the control plane.
        limit: calls that wait at most, of all models together.
        weights: of callers.
    """

    def __init__(self, want: Want, limit: int, weights: Weights | None = None) -> None:
        self._want = want
        self._places = Places(
            limit,
            f"{limit} calls wait for their models to be loaded, which is the limit "
            "(TEXT_MAX_WAITING_FOR_MODELS)",
            weights=weights or {},
        )
        self._waiting: Counter[ModelId] = Counter()
        self._wants: SingleFlight[tuple[ModelId, str], SharedWork[None]] = SingleFlight()

    async def aclose(self) -> None:
        """Ends all requests; the calls that wait for them are CANCELLED."""
        await self._wants.close()

    def waiting_calls(self) -> Mapping[ModelId, int]:
        """How many calls wait, by model."""
        return dict(self._waiting)

    async def bring(self, model_id: ModelId, call: str) -> None:
        """Waits until a model is READY. The request for it ends with the last call that waits.

        Args:
            model_id: of a model that is not READY here.
            call: the RPC that needs it.

        Raises:
            QueueFullError: too many calls wait already.
            ServiceError: why the model cannot be had.
        """
        ousted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = self._places.take(caller(), partial(_oust, ousted))
        self._waiting[model_id] += 1
        try:
            with self._wants.join((model_id, call), lambda: self._start(model_id, call)) as work:
                await asyncio.wait({ousted, work.task}, return_when=asyncio.FIRST_COMPLETED)
                if ousted.done():
                    ousted.result()
                work.result()
        finally:
            ousted.cancel()
            self._places.free(place)
            self._waiting -= Counter([model_id])

    def _start(self, model_id: ModelId, call: str) -> SharedWork[None]:
        work: SharedWork[None] = SharedWork()
        work.task = asyncio.ensure_future(self._want(model_id, call))
        return work


def _oust(ousted: asyncio.Future[None], error: ServiceError) -> bool:
    """Ends the wait of a call whose place another caller gets."""
    if ousted.done():
        return False
    ousted.set_exception(error)
    return True
