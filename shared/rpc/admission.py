"""Keeps the proxy away from a service until the control plane lets calls in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

log = logging.getLogger(__name__)


class Admission:
    """Whether a replica takes calls.

    A replica that joins others lacks the models that they hold. model_mgmt_svc, which loads them
    there, knows when it has them. A service without a control plane takes calls by itself.

    Args:
        patience_seconds: how long the control plane may be silent before nobody is waited for.
    """

    def __init__(self, patience_seconds: float) -> None:
        self._patience = patience_seconds
        self._admitted = asyncio.Event()
        self._heard_at = 0.0

    @property
    def admitted(self) -> bool:
        """Whether calls are let in."""
        return self._admitted.is_set()

    def heartbeat(self) -> None:
        """Notes that the control plane is there."""
        self._heard_at = time.monotonic()

    def admit(self) -> None:
        """Lets calls in, for good."""
        self._admitted.set()

    async def wait(self) -> None:
        """Returns once calls are let in; patience begins now."""
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
                log.warning("no control plane: taking calls", extra={"waited_seconds": seconds})
                self.admit()
