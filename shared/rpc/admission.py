"""Admission of a new replica: it takes no calls until the control plane admits it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

log = logging.getLogger(__name__)


class Admission:
    """Whether a replica takes calls.

    A replica that joins others lacks the models that they hold. model_mgmt_svc loads them there and
    admits it once it has them. If there is no control plane, the replica admits itself.

    Args:
        patience_seconds: how long to wait for the control plane since its last heartbeat.
    """

    def __init__(self, patience_seconds: float) -> None:
        self._patience = patience_seconds
        self._admitted = asyncio.Event()
        self._heard_at = 0.0

    @property
    def admitted(self) -> bool:
        """Whether the replica takes calls."""
        return self._admitted.is_set()

    def heartbeat(self) -> None:
        """Notes that the control plane is alive."""
        self._heard_at = time.monotonic()

    def admit(self) -> None:
        """Takes calls from now on."""
        self._admitted.set()

    async def wait(self) -> None:
        """Returns once the replica is admitted; the patience starts now."""
        self.heartbeat()
        while not self.admitted:
            left = self._heard_at + self._patience - time.monotonic()
            if left > 0:
                # Not wait_for, which before Python 3.12 loses a cancellation beside the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._admitted.wait()
            else:
                seconds = self._patience
                log.warning(
                    "no contact with model_mgmt_svc; taking calls without being admitted",
                    extra={"waited_seconds": seconds},
                )
                self.admit()
