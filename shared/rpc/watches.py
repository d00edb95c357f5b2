"""Watches: Health.Watch, WatchModels and reflection streams, which are open long and mostly quiet.

Most take no slot of other calls, so they have a limit and a life of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from grpc_health.v1 import health, health_pb2

from shared.errors import QueueFullError, ShuttingDownError, UnavailableError
from shared.rpc.interceptors import Context, abort


class Watches:
    """The open watches of a process.

    Args:
        limit: most watches at once.
        seconds: the life of one; 0 is unlimited.
    """

    def __init__(self, limit: int = 256, seconds: float = 0) -> None:
        self._limit = limit
        self._seconds = seconds
        self._open: set[asyncio.Timeout] = set()
        self._stopped = False

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Holds a place while the body runs, which ends with the watch's life.

        Raises:
            QueueFullError: there are as many as the limit allows.
            UnavailableError: its time is over: watch again.
            ShuttingDownError: `stop` was called.
        """
        if len(self._open) >= self._limit:
            raise QueueFullError(
                f"{len(self._open)} watches are open, and the limit is {self._limit}",
                metadata={"limit": str(self._limit)},
            )
        life = asyncio.timeout(self._seconds or None)
        self._open.add(life)
        try:
            async with life:
                yield
        except TimeoutError:
            if self._stopped:
                raise ShuttingDownError("the service is stopping") from None
            message = f"the watch has ended after {self._seconds:g} s, its longest life"
            raise UnavailableError(f"{message}: watch again") from None
        finally:
            self._open.discard(life)

    @property
    def count(self) -> int:
        return len(self._open)

    def stop(self) -> None:
        """Ends all: an open watch would hold the server for the whole of its grace."""
        self._stopped = True
        for life in self._open:
            if not life.expired():  # it ends already
                life.reschedule(asyncio.get_running_loop().time())


class HealthServicer(health.aio.HealthServicer):
    """The standard health service, with limited watches."""

    def __init__(self, watches: Watches) -> None:
        super().__init__()
        self._watches = watches

    async def Watch(  # noqa: N802  the name is the proto's
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> None:
        # It writes to the context, so that no interceptor wraps it.
        # The metadata are sent apart from the first answer: the status of a watch that ends within
        # that write would send them again, which gRPC refuses, and no status would be sent.
        await context.send_initial_metadata(())
        try:
            async with self._watches.watch():
                await super().Watch(request, context)
        except (QueueFullError, UnavailableError) as error:
            await abort(context, error)


def limited(info: Any, watches: Watches) -> Any:
    """The method of reflection with a place among the watches."""

    async def watched(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async with watches.watch():
            async for response in info(requests, context):
                yield response

    return watched
