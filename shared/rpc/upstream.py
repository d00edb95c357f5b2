"""Calls to another service of this set, on behalf of a call that is not gRPC.

Errors are `ServiceError`s, as if the other service had raised them here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import grpc

from shared.errors import ServiceError, UnavailableError
from shared.rpc.channels import connect
from shared.rpc.interceptors import as_service_error
from shared.rpc.status import from_details
from shared.telemetry.tracing import outgoing_metadata


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802

    @classmethod
    def FromString(cls, data: bytes) -> Self: ...  # noqa: N802


Response = TypeVar("Response", bound=_Message)
# Names are looked up again when a connection is lost, and no more often than this.
_RESOLVE_MILLISECONDS = 1000


class Upstream:
    """A gRPC service, on as many replicas as its name has addresses. A context manager.

    Replicas that do not report the service as SERVING get no calls; the others take turns. While
    none does, a call waits for the first.

    Args:
        address: host:port.
        service: its full name.
        wait_seconds: longest wait of a call for a service that is starting.
    """

    def __init__(self, address: str, service: str, wait_seconds: float) -> None:
        self._service = service
        self._wait_seconds = wait_seconds
        self._channel = connect(
            address,
            serving=service,
            options=[("grpc.dns_min_time_between_resolutions_ms", _RESOLVE_MILLISECONDS)],
        )
        self._calls: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._channel.close()

    async def call(
        self, method: str, request: _Message, response: type[Response], seconds: float
    ) -> Response:
        """Makes a unary call. If the current task is cancelled, so is the call.

        Args:
            method: its name.
            request: the message.
            response: the class of the answer.
            seconds: its time limit.

        Raises:
            ServiceError: what the service answered, or that it is down.
        """
        await self._serving()
        call = self._callable(method, request, response, self._channel.unary_unary)
        try:
            answer: Response = await call(request, timeout=seconds, metadata=outgoing_metadata())
        except grpc.aio.AioRpcError as error:
            raise _error(error) from None
        return answer

    def stream(
        self, method: str, request: _Message, response: type[Response]
    ) -> AsyncGenerator[Response, None]:
        """Makes a call that answers with a stream, which is cancelled when this is closed.

        Raises:
            ServiceError: as for `call`.
        """
        start = self._callable(method, request, response, self._channel.unary_stream)
        return self._responses(start, request)

    def exchange(
        self, method: str, requests: Sequence[_Message], response: type[Response]
    ) -> AsyncGenerator[Response, None]:
        """Makes a call of two streams, with requests that are all there.

        Raises:
            ServiceError: as for `call`.
        """
        start = self._callable(method, requests[0], response, self._channel.stream_stream)
        return self._responses(start, iter(requests))

    async def _responses(self, start: Any, request: Any) -> AsyncGenerator[Any, None]:
        """The messages of a call, which is cancelled when this is closed."""
        await self._serving()
        call = start(request, metadata=outgoing_metadata())
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                yield message
        except grpc.aio.AioRpcError as error:
            raise _error(error) from None
        finally:
            call.cancel()  # nothing happens to a call that has ended

    def _callable(self, method: str, request: _Message, response: type[_Message], make: Any) -> Any:
        made = self._calls.get(method)
        if made is None:
            made = self._calls[method] = make(
                f"/{self._service}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,
            )
        return made

    async def _serving(self) -> None:
        if self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return
        try:
            await asyncio.wait_for(self._channel.channel_ready(), self._wait_seconds)
        except TimeoutError:
            raise UnavailableError(
                f"{self._service} is down, and did not start within {self._wait_seconds:g} s"
            ) from None


def _error(error: grpc.aio.AioRpcError) -> ServiceError:
    return from_details(error) or as_service_error(error)
