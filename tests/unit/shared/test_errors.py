"""Every error class reaches the client with its code, reason and details, for all RPC kinds."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from shared import errors
from shared.errors import ServiceError
from shared.rpc.server import create_server
from shared.settings import ServerSettings

CLASSES = sorted(
    (
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, ServiceError)
    ),
    key=lambda kind: kind.__name__,
)
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
TEXT = "a sentence for the caller"


def test_the_hierarchy_in_the_documentation_is_complete() -> None:
    lines = (errors.__doc__ or "").splitlines()
    listed = [line.strip(" *x-") for line in lines if "Error" in line and line.strip()[0] in "*x-"]
    assert sorted(line.partition(" ")[0] for line in listed) == [each.__name__ for each in CLASSES]


def _raise(name: bytes) -> None:
    text = name.decode()
    if text == "unexpected":
        raise RuntimeError("secret /path/of/this/machine")
    if text == "remote":
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.UNKNOWN, grpc.aio.Metadata(), grpc.aio.Metadata(), "secret"
        )
    if text == "remote-down":
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "unix:/secret"
        )
    if text == "timeout":
        raise TimeoutError
    if text == "cut-off":  # what a call on a channel raises when the channel is closed
        raise asyncio.CancelledError
    raise getattr(errors, text)(TEXT, field="prompt", retry_after=2.5, metadata={"limit": "7"})


class _Handlers(grpc.GenericRpcHandler):
    """A service of four methods, one a kind; the request names the error to raise."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        kind = details.method.rpartition("/")[2]
        if kind not in KINDS:
            return None
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(getattr(self, f"_{kind}"))

    async def _unary_unary(self, request: bytes, _: object) -> bytes:
        _raise(request)
        return b""

    async def _stream_unary(self, requests: AsyncIterator[bytes], _: object) -> bytes:
        async for request in requests:
            _raise(request)
        return b""

    async def _unary_stream(self, request: bytes, _: object) -> AsyncIterator[bytes]:
        yield b"first"
        _raise(request)

    async def _stream_stream(
        self, requests: AsyncIterator[bytes], _: object
    ) -> AsyncIterator[bytes]:
        async for request in requests:
            yield b"first"
            _raise(request)


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    server = create_server(ServerSettings())
    server.add_generic_rpc_handlers((_Handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


async def _call(channel: grpc.aio.Channel, kind: str, name: str) -> grpc.aio.AioRpcError:
    method = getattr(channel, kind)(f"/test.Service/{kind}")
    request = name.encode()
    call = method(iter([request])) if kind.startswith("stream") else method(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if kind.endswith("stream"):
            assert await call.read() == b"first"
            await call.read()
            raise AssertionError(f"no error; status {await call.code()}")
        await call
    return caught.value


def _details(error: grpc.aio.AioRpcError, kind: type) -> list:
    status = rpc_status.from_call(_Call(error))
    assert status is not None
    assert status.code == error.code().value[0]
    found = []
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            found.append(message)
    return found


class _Call:
    """What rpc_status.from_call reads, from an aio error."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code
        self.details = error.details
        self.trailing_metadata = error.trailing_metadata


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error_class", CLASSES, ids=lambda c: c.__name__)
async def test_every_error_class_maps(
    channel: grpc.aio.Channel, error_class: type[ServiceError], kind: str
) -> None:
    error = await _call(channel, kind, error_class.__name__)
    assert error.code() is error_class.code
    assert error.details() == TEXT
    (info,) = _details(error, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (error_class.reason, errors.ERROR_DOMAIN)
    assert info.metadata == {"limit": "7"}
    (retry,) = _details(error, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 2500
    bad_requests = _details(error, error_details_pb2.BadRequest)
    if error_class.code is grpc.StatusCode.INVALID_ARGUMENT:
        assert bad_requests[0].field_violations[0].field == "prompt"
    else:
        assert bad_requests == []


@pytest.mark.parametrize("kind", KINDS)
async def test_unexpected_errors_say_nothing(channel: grpc.aio.Channel, kind: str) -> None:
    for name in ("unexpected", "remote"):
        error = await _call(channel, kind, name)
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in error.details()


async def test_a_service_behind_keeps_its_code_and_loses_its_address(
    channel: grpc.aio.Channel,
) -> None:
    error = await _call(channel, "unary_unary", "remote-down")
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "secret" not in error.details()
    assert _details(error, error_details_pb2.RetryInfo)
    error = await _call(channel, "unary_unary", "timeout")
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_behind_that_is_cut_off_leaves_no_caller_waiting(
    channel: grpc.aio.Channel, kind: str
) -> None:
    error = await _call(channel, kind, "cut-off")
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert _details(error, error_details_pb2.RetryInfo)


def test_reasons_are_unique_and_stable_names() -> None:
    reasons = [kind.reason for kind in CLASSES if kind is not errors.InternalError]
    assert len(set(reasons)) == len(reasons)
    assert all(reason == reason.upper() for reason in reasons)
