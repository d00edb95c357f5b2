"""Limits the number of concurrent calls of a process."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, nullcontext
from typing import Any, Self

from shared.caller import caller
from shared.errors import QueueFullError
from shared.rpc.drain import Drain
from shared.rpc.interceptors import (
    Context,
    Handler,
    StreamCall,
    UnaryCall,
    WrappingInterceptor,
    behaviour,
)

# Methods of the control plane and of people.
_INTERNAL = "/ml.internal."


class CallLimitInterceptor(WrappingInterceptor):
    """Refuses calls over a limit, and new ones of a replica that was drained.

    For the limit a stream counts from its first message on.

    Calls of the health and reflection services are always accepted: a busy process is not a dead
    one, and the proxy must not drop it. (grpc.aio's own limit refuses these too, and its error
    does not give the limit.)

    Args:
        limit: most concurrent calls.
        per_caller: most concurrent calls of one caller; None is no limit. Calls that do not come
            through Envoy have none.
        drain: counts the calls of callers, and says whether new ones are refused; None does not.
    """

    def __init__(
        self, limit: int, per_caller: int | None = None, drain: Drain | None = None
    ) -> None:
        super().__init__()
        self._drain = drain
        self._slots = Slots(limit, per_caller=per_caller)

    def wrap(self, handler: Handler, method: str) -> UnaryCall | StreamCall:
        inner = behaviour(handler)
        if method.startswith("/grpc."):
            call: UnaryCall | StreamCall = inner
            return call
        taking = _Slot.at_first if handler.request_streaming else _Slot.at_once
        drain = None if method.startswith(_INTERNAL) else self._drain
        counted = drain.call if drain else nullcontext

        async def unary(request: Any, context: Context) -> Any:
            with counted(), _Slot(self._slots) as slot:
                return await inner(taking(slot, request), context)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            with counted(), _Slot(self._slots) as slot:
                async with aclosing(inner(taking(slot, request), context)) as responses:
                    async for response in responses:
                        yield response

        return stream if handler.response_streaming else unary


class Slots:
    """A number of calls that may run at once.

    Args:
        limit: most calls.
        what: what they are, for the message.
        per_caller: most calls of one caller; None is no limit.
    """

    def __init__(self, limit: int, what: str = "calls", *, per_caller: int | None = None) -> None:
        self._limit = limit
        self._what = what
        self._per_caller = limit if per_caller is None else per_caller
        self._taken = 0
        self._taken_by: Counter[str] = Counter()

    def take(self, name: str = "") -> None:
        """Takes a slot, until `give`, for a caller; "" is none in particular.

        Raises:
            QueueFullError: all are taken; the message has the limit.
        """
        if self._taken >= self._limit:
            raise QueueFullError(
                f"{self._taken} {self._what} are running, and the limit is {self._limit}",
                metadata={"limit": str(self._limit)},
            )
        if name and self._taken_by[name] >= self._per_caller:
            raise QueueFullError(
                f"{self._per_caller} {self._what} of this caller are running, which is the limit "
                "for one",
                metadata={"limit": str(self._per_caller)},
            )
        self._taken += 1
        self._taken_by[name] += 1

    def give(self, name: str = "") -> None:
        """Gives a slot of a caller back."""
        self._taken -= 1
        self._taken_by[name] -= 1
        if not self._taken_by[name]:
            del self._taken_by[name]

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A slot for one call; raises as `take`."""
        self.take()
        try:
            yield
        finally:
            self.give()


def came_through_envoy(context: Context) -> bool:
    """Whether a call came through Envoy, which adds its caller's address, or from a service."""
    return any(key == "x-forwarded-for" for key, _ in context.invocation_metadata() or ())


class _Slot:
    """The slot of one call, once it has taken it."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._taken = False
        self._caller = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._taken:
            self._slots.give(self._caller)

    def at_once(self, request: Any) -> Any:
        self._take()
        return request

    async def at_first(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            if not self._taken:
                self._take()
            yield request

    def _take(self) -> None:
        self._caller = caller()
        self._slots.take(self._caller)
        self._taken = True
