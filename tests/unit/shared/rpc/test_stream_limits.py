"""Streams whose caller is silent or reads nothing are ended; those that are used are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from ml import mediapipe_pb2 as pb
from ml import mediapipe_pb2_grpc as rpc
from shared.idle import set_idle_seconds
from shared.rpc.server import create_server
from shared.settings import ServerSettings
from tests.support.waiting import until

LARGE = 4 << 20  # more than gRPC sends to a caller that does not read


class _Vision(rpc.MediapipeServiceServicer):
    """Answers frame 0 never, others at once; frame 1 with a large mask."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0

    async def StreamSelfieSegmentation(
        self, requests: AsyncIterator[pb.VideoFrame], context: Any
    ) -> AsyncIterator[pb.SegmentationResponse]:
        self.begun += 1
        try:
            async for frame in requests:
                if frame.width:  # as in a service, in a task of the stream's
                    await asyncio.create_task(_choose_idle(frame.width / 1000))
                if frame.frame_number:
                    mask = bytes(LARGE if frame.frame_number == 1 else 1)
                    yield pb.SegmentationResponse(mask=mask, frame_number=frame.frame_number)
        finally:
            self.ended += 1


async def _choose_idle(seconds: float) -> None:
    set_idle_seconds(seconds)


@asynccontextmanager
async def _serving(
    **limits: float,
) -> AsyncIterator[tuple[_Vision, rpc.MediapipeServiceStub]]:
    vision = _Vision()
    server = create_server(ServerSettings.model_validate(limits))
    rpc.add_MediapipeServiceServicer_to_server(vision, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        yield vision, rpc.MediapipeServiceStub(channel)
    await server.stop(0)


async def _failure(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await call.read() is not grpc.aio.EOF:
            pass
    return caught.value.code(), caught.value.details() or ""


async def test_a_stream_without_a_message_takes_no_slot_and_is_ended() -> None:
    async with _serving(first_message_seconds=0.5, max_concurrent_calls=1) as (vision, stub):
        silent = [stub.StreamSelfieSegmentation() for _ in range(5)]
        await until(lambda: vision.begun == 5)
        used = stub.StreamSelfieSegmentation()
        await used.write(pb.VideoFrame(frame_number=2))
        assert (await used.read()).frame_number == 2
        late = stub.StreamSelfieSegmentation()
        await late.write(pb.VideoFrame(frame_number=2))
        code, details = await _failure(late)
        assert (code.name, details[-14:]) == ("RESOURCE_EXHAUSTED", "the limit is 1")
        for call in silent:
            assert await _failure(call) == (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "no message within 0.5 s",
            )
        await used.write(pb.VideoFrame(frame_number=3))
        assert (await used.read()).frame_number == 3
        await used.done_writing()
        assert await used.read() is grpc.aio.EOF
        await until(lambda: vision.ended == vision.begun)


async def test_a_stream_that_goes_silent_is_ended() -> None:
    async with _serving(stream_idle_seconds=0.5) as (vision, stub):
        call = stub.StreamSelfieSegmentation()
        for number in range(2, 6):  # longer together than the limit
            await call.write(pb.VideoFrame(frame_number=number))
            assert (await call.read()).frame_number == number
            await asyncio.sleep(0.2)
        assert await _failure(call) == (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "no message for 0.5 s, the longest that a stream may idle",
        )
        await until(lambda: vision.ended == 1)


async def test_a_reader_that_reads_nothing_holds_nothing_and_is_told_later() -> None:
    async with _serving(reader_seconds=0.5, max_concurrent_calls=1) as (vision, stub):
        call = stub.StreamSelfieSegmentation()
        for _ in range(8):
            await call.write(pb.VideoFrame(frame_number=1))
        await until(lambda: vision.ended == 1)
        other = stub.StreamSelfieSegmentation()
        await other.write(pb.VideoFrame(frame_number=2))
        assert (await other.read()).frame_number == 2
        assert await _failure(call) == (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "a response was not read within 0.5 s",
        )


async def test_a_stream_without_a_response_yet_has_headers_for_the_proxy() -> None:
    async with _serving(first_message_seconds=0.3) as (_, stub):
        call = stub.StreamSelfieSegmentation()
        await call.write(pb.VideoFrame(frame_number=0))
        await asyncio.wait_for(call.initial_metadata(), 20)
        await call.write(pb.VideoFrame(frame_number=2))
        assert (await call.read()).frame_number == 2
        call.cancel()


async def test_a_cancelled_stream_stays_cancelled() -> None:
    async with _serving() as (vision, stub):
        call = stub.StreamSelfieSegmentation()
        await call.write(pb.VideoFrame(frame_number=2))
        await call.read()
        call.cancel()
        await until(lambda: vision.ended == 1)


async def test_a_caller_chooses_how_long_its_stream_may_idle() -> None:
    async with _serving(stream_idle_seconds=0.6) as (_, stub):
        patient, usual, hasty = [stub.StreamSelfieSegmentation() for _ in range(3)]
        await patient.write(pb.VideoFrame(frame_number=2, width=60_000))
        await usual.write(pb.VideoFrame(frame_number=2))
        await hasty.write(pb.VideoFrame(frame_number=2, width=200))
        for call in (patient, usual, hasty):
            assert (await call.read()).frame_number == 2
        for call, seconds in ((hasty, "0.2"), (usual, "0.6")):
            assert await _failure(call) == (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"no message for {seconds} s, the longest that a stream may idle",
            )
        await patient.write(pb.VideoFrame(frame_number=3))
        assert (await patient.read()).frame_number == 3
