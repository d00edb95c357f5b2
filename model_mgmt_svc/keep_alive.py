"""Takes models out of memory that have had no calls for as long as their keep_alive says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from model_mgmt_svc.desired import DesiredModel, DesiredModels
from model_mgmt_svc.lifecycle import Lifecycle
from model_mgmt_svc.replicas import ReplicaModel

log = logging.getLogger(__name__)


class KeepAlive:
    """Looks at the models periodically, and evicts those that have been idle for too long.

    An idle model has no call in flight on any replica. One that gets a call while it is being
    evicted stays. See `Lifecycle.evict` for what follows.

    Args:
        desired: the desired models, with their options of life.
        lifecycle: what the replicas hold, and how it is evicted.
        keep_alive: seconds for a model without this option; -1 never.
        interval: seconds between two looks.
    """

    def __init__(
        self,
        desired: DesiredModels,
        lifecycle: Lifecycle,
        *,
        keep_alive: float,
        interval: float,
    ) -> None:
        self._desired = desired
        self._lifecycle = lifecycle
        self._keep_alive = keep_alive
        self._interval = interval

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.look()
            except Exception:
                log.exception("idle models cannot be evicted")

    async def look(self) -> None:
        """Evicts the models that have been idle for too long."""
        if not any(map(self._is_limited, self._desired.all())):
            return
        held: dict[str, list[ReplicaModel]] = {}
        for models in (await self._lifecycle.models()).values():
            for each in models:
                held.setdefault(each.model_id, []).append(each)
        due = [  # by the options of now: a LoadModel may have changed them meanwhile
            model
            for model in self._desired.all()
            if self._is_limited(model) and self._is_due(model, held.get(model.model_id, []))
        ]
        await asyncio.gather(*map(self._evict, due))

    def _is_limited(self, model: DesiredModel) -> bool:
        life = model.life_in_effect(self._keep_alive)
        return not (life.pin or model.evicted or life.keep_alive_seconds < 0)

    def _is_due(self, model: DesiredModel, held: Sequence[ReplicaModel]) -> bool:
        """Whether it is READY wherever it is, and has been idle for too long everywhere."""
        if not held or any(each.calls or not each.ready for each in held):
            return False
        seconds = model.life_in_effect(self._keep_alive).keep_alive_seconds
        # "At once after a call" is not before the first one.
        used = seconds > 0 or any(each.last_used_at for each in held)
        return used and min(each.idle_seconds for each in held) >= seconds

    async def _evict(self, model: DesiredModel) -> None:
        seconds = model.life_in_effect(self._keep_alive).keep_alive_seconds
        why = f"after {seconds:g} s without calls" if seconds else "after its last call"
        await self._lifecycle.evict(model.model_id, f"{why} (option keep_alive)")
