"""Limits the number of concurrent calls of a process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from shared.errors import QueueFullError
from shared.rpc.interceptors import (
    Context,
    Handler,
    StreamCall,
    UnaryCall,
    WrappingInterceptor,
    behaviour,
)


class CallLimitInterceptor(WrappingInterceptor):
    """Refuses calls over a limit.

    Calls of the health and reflection services are always accepted: a busy process is not a dead
    one, and the proxy must not drop it. (grpc.aio's own limit refuses these too, and its error
    does not give the limit.)

    Args:
        limit: most concurrent calls.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._running = 0

    def wrap(self, handler: Handler, method: str) -> UnaryCall | StreamCall:
        inner = behaviour(handler)
        if method.startswith("/grpc."):
            call: UnaryCall | StreamCall = inner
            return call

        async def unary(request: Any, context: Context) -> Any:
            with self._slot():
                return await inner(request, context)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._slot():
                async with aclosing(inner(request, context)) as responses:
                    async for response in responses:
                        yield response

        return stream if handler.response_streaming else unary

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if self._running >= self._limit:
            raise QueueFullError(
                f"{self._running} calls are running, and the limit is {self._limit}",
                metadata={"limit": str(self._limit)},
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
