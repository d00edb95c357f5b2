"""The conventional gRPC metrics, for all four kinds, and what counts as a normal end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from prometheus_client import REGISTRY

from ml import mediapipe_pb2 as media
from ml import mediapipe_pb2_grpc as media_rpc
from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc as rpc
from shared.errors import ModelNotLoadedError
from shared.rpc.server import create_server
from shared.settings import ServerSettings
from tests.support.waiting import until


class _Text(rpc.TransformersServiceServicer):
    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def GenerateText(self, request, context):  # type: ignore[no-untyped-def]
        try:
            for _ in range(3):
                yield pb.TextResponse(text="x")
            if request.prompt == "fail":
                raise ModelNotLoadedError("no")
            if request.prompt == "hang":
                await asyncio.Event().wait()
            yield pb.TextResponse(done=True)
            if request.prompt == "dropped after done":
                await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def GenerateEmbeddings(self, request, context):  # type: ignore[no-untyped-def]
        return pb.GeneratedEmbeddingsResponse()


class _Media(media_rpc.MediapipeServiceServicer):
    async def StreamFaceDetection(self, requests, context):  # type: ignore[no-untyped-def]
        async for frame in requests:
            yield media.FaceDetectionResponse(frame_number=frame.frame_number)

    async def ProcessMediaSequence(self, requests, context):  # type: ignore[no-untyped-def]
        count = 0
        async for _ in requests:
            count += 1
        return media.MediaSequenceResponse(total_frames=count)


@pytest.fixture
async def served() -> AsyncIterator[tuple[_Text, grpc.aio.Channel]]:
    server, text = create_server(ServerSettings()), _Text()
    rpc.add_TransformersServiceServicer_to_server(text, server)
    media_rpc.add_MediapipeServiceServicer_to_server(_Media(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield text, channel
    await server.stop(0)


def _value(name: str, kind: str, service: str, method: str, **more: str) -> float:
    labels = {"grpc_type": kind, "grpc_service": service, "grpc_method": method, **more}
    return REGISTRY.get_sample_value(name, labels) or 0.0


def _figures(kind: str, service: str, method: str, code: str) -> tuple[float, ...]:
    at = (kind, service, method)
    return (
        _value("grpc_server_started_total", *at),
        _value("grpc_server_handled_total", *at, grpc_code=code),
        _value("grpc_server_handling_seconds_count", *at),
        _value("grpc_server_msg_received_total", *at),
        _value("grpc_server_msg_sent_total", *at),
    )


async def _settled(before: tuple[float, ...], at: tuple[str, str, str, str]) -> tuple[float, ...]:
    """The growth of the figures once the call's end was counted."""
    await until(lambda: _figures(*at)[1] > before[1])
    return tuple(b - a for a, b in zip(before, _figures(*at), strict=True))


async def test_four_kinds(served: tuple[_Text, grpc.aio.Channel]) -> None:
    _, channel = served
    text, video = rpc.TransformersServiceStub(channel), media_rpc.MediapipeServiceStub(channel)
    frames = [media.VideoFrame(frame_number=i) for i in range(4)]

    async def unary() -> None:
        await text.GenerateEmbeddings(pb.GenerateEmbeddingsRequest())

    async def server_stream() -> None:
        assert [m.done async for m in text.GenerateText(pb.TextRequest())][-1]

    async def client_stream() -> None:
        await video.ProcessMediaSequence(iter([media.MediaSequenceFrame()] * 4))

    async def bidi() -> None:
        assert len([m async for m in video.StreamFaceDetection(iter(frames))]) == 4

    for kind, service, method, call, received, sent in (
        ("unary", "ml.TransformersService", "GenerateEmbeddings", unary, 1, 1),
        ("server_stream", "ml.TransformersService", "GenerateText", server_stream, 1, 4),
        ("client_stream", "ml.MediapipeService", "ProcessMediaSequence", client_stream, 4, 1),
        ("bidi_stream", "ml.MediapipeService", "StreamFaceDetection", bidi, 4, 4),
    ):
        at = (kind, service, method, "OK")
        before = _figures(*at)
        await call()
        assert await _settled(before, at) == (1, 1, 1, received, sent)


@pytest.mark.parametrize(
    ("prompt", "code"),
    [("fail", "FAILED_PRECONDITION"), ("hang", "CANCELLED"), ("dropped after done", "OK")],
)
async def test_how_calls_end(
    served: tuple[_Text, grpc.aio.Channel], prompt: str, code: str
) -> None:
    servicer, channel = served
    at = ("server_stream", "ml.TransformersService", "GenerateText", code)
    before = _figures(*at)
    call = rpc.TransformersServiceStub(channel).GenerateText(pb.TextRequest(prompt=prompt))
    wanted = 3 if prompt == "hang" else 4
    try:
        for _ in range(wanted):
            await call.read()
    except grpc.aio.AioRpcError:
        assert prompt == "fail"
    call.cancel()
    assert (await _settled(before, at))[:3] == (1, 1, 1)
    await asyncio.wait_for(servicer.closed.wait(), 60)


async def test_unknown_methods_get_no_label(served: tuple[_Text, grpc.aio.Channel]) -> None:
    _, channel = served
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/ml.Nothing/AtAll")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    names = {s.labels.get("grpc_service") for m in REGISTRY.collect() for s in m.samples}
    assert "ml.Nothing" not in names


@pytest.mark.parametrize(("share", "lines"), [(1.0, 40), (0.5, 22), (0.0, 0)])
async def test_a_share_of_the_calls_that_succeed_is_logged(
    share: float, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "shared.calls")
    server, text = create_server(ServerSettings(logged_calls=share)), _Text()
    rpc.add_TransformersServiceServicer_to_server(text, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = rpc.TransformersServiceStub(channel)
        for number in range(40):
            named = (("x-request-id", f"call-{number}"),)
            await stub.GenerateEmbeddings(pb.GenerateEmbeddingsRequest(), metadata=named)
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in stub.GenerateText(pb.TextRequest(prompt="fail")):
                pass
        ended = [line for line in caplog.records if line.message == "call ended"]
        await until(lambda: len(_failed(caplog)) == 1)
    await server.stop(0)
    assert len([line for line in ended if vars(line)["grpc_code"] == "OK"]) == lines


def _failed(caplog: pytest.LogCaptureFixture) -> list[str]:
    ended = (vars(line) for line in caplog.records if line.message == "call ended")
    return [line["grpc_code"] for line in ended if line["grpc_code"] != "OK"]
