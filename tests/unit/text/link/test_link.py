"""The link between text_svc and a model's process: calls of every kind over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc
from shared.errors import InputTooLargeError, WorkerUnavailableError
from shared.telemetry.logs import request_id
from text_svc.link.call import WINDOW_BYTES
from text_svc.link.client import Link, RemoteError
from text_svc.link.server import listen

METADATA = {"x-request-id": "a call"}
PART = WINDOW_BYTES // 4
MAX_MESSAGE_BYTES = 8 * WINDOW_BYTES


class Servicer(transformers_pb2_grpc.TransformersServiceServicer):
    """Answers by the prompt, and counts what it has done."""

    def __init__(self) -> None:
        self.sent = 0
        self.read = 0
        self.stopped = asyncio.Event()

    async def Infer(self, request: pb.InferRequest, context: Any) -> pb.InferResponse:
        if request.text == "too long":
            raise InputTooLargeError("over the limit of 7", metadata={"limit": "7"})
        if request.text == "bug":
            raise ZeroDivisionError
        if request.text == "request id":
            return pb.InferResponse(text=request_id())
        return pb.InferResponse(text=request.text)

    async def GenerateText(
        self, request: pb.TextRequest, context: Any
    ) -> AsyncIterator[pb.TextResponse]:
        try:
            for _ in range(request.max_length):
                self.sent += 1
                yield pb.TextResponse(text=request.prompt)
            if request.model == "fails":
                raise InputTooLargeError("over the limit of 7")
            if request.model == "endless":
                await asyncio.Event().wait()
        finally:
            self.stopped.set()

    async def StreamEmbeddings(
        self, request_iterator: AsyncIterator[pb.GenerateEmbeddingsRequest], context: Any
    ) -> AsyncIterator[pb.GeneratedEmbeddingsResponse]:
        async for request in request_iterator:
            self.read += 1
            if request.prompt_name == "enough":
                return
            if request.prompt_name == "stall":
                await asyncio.Event().wait()
            yield pb.GeneratedEmbeddingsResponse(tokens=len(request.texts))


class Ends:
    """Both ends of a link."""

    def __init__(self, link: Link, servicer: Servicer, server: asyncio.Server) -> None:
        self.link = link
        self.servicer = servicer
        self.server = server

    async def infer(self, text: str) -> str:
        request = pb.InferRequest(text=text).SerializeToString()
        async with aclosing(self.link.call("Infer", request, metadata=METADATA)) as answers:
            return pb.InferResponse.FromString(await anext(answers)).text

    def generate(self, prompt: str, count: int, model: str = "", **options: Any) -> Any:
        request = pb.TextRequest(model=model, prompt=prompt, max_length=count).SerializeToString()
        return aclosing(self.link.call("GenerateText", request, metadata=METADATA, **options))

    def embed(self, requests: AsyncIterator[bytes]) -> Any:
        return aclosing(self.link.call("StreamEmbeddings", requests, metadata=METADATA))


@asynccontextmanager
async def ends(folder: Path) -> AsyncIterator[Ends]:
    servicer = Servicer()
    server = await listen(servicer, folder / "link.sock", max_message_bytes=MAX_MESSAGE_BYTES)
    link = await Link.connect(folder / "link.sock", lambda: WorkerUnavailableError("gone"))
    try:
        yield Ends(link, servicer, server)
    finally:
        link.close()
        server.close()


async def requests(count: int, size: int = 1, **fields: Any) -> AsyncIterator[bytes]:
    for number in range(count):
        yield pb.GenerateEmbeddingsRequest(
            texts=["x" * size] * (number + 1), **fields
        ).SerializeToString()


async def reaches(number: int, value: Any) -> None:
    """Waits until a number stands still there, though its task has had every chance to go on."""
    async with asyncio.timeout(60):
        while value() < number:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    assert value() == number


async def test_one_answer_and_many_calls_at_once(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        texts = [f"number {number}" for number in range(300)]
        assert await asyncio.gather(*map(both.infer, texts)) == texts
        assert await both.infer("request id") == "a call"


async def test_a_message_longer_than_the_window(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        text = "long" * (5 * WINDOW_BYTES // 4)
        assert await both.infer(text) == text
        async with both.generate(text, 3) as answers:
            assert [pb.TextResponse.FromString(each).text async for each in answers] == [text] * 3


async def test_streams_both_ways(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        async with both.generate("word", 1000) as answers:
            assert len([each async for each in answers]) == 1000
        async with both.embed(requests(20)) as answers:
            tokens = [
                pb.GeneratedEmbeddingsResponse.FromString(one).tokens async for one in answers
            ]
        assert tokens == list(range(1, 21))


async def test_an_error_keeps_its_code_and_details(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        with pytest.raises(RemoteError, match="limit of 7") as refused:
            await both.infer("too long")
        status = status_pb2.Status.FromString(refused.value.ended.details)
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.metadata["limit"] == "7"
        assert refused.value.ended.code == InputTooLargeError.code.value[0]
        with pytest.raises(RemoteError, match="internal error") as failed:
            await both.infer("bug")
        assert failed.value.ended.code == grpc.StatusCode.INTERNAL.value[0]
        async with both.generate("word", 2, "fails") as answers:
            assert [await anext(answers) for _ in range(2)]
            with pytest.raises(RemoteError, match="limit of 7"):
                await anext(answers)
        assert await both.infer("the next") == "the next"


async def test_an_answer_over_the_limit_is_refused_with_the_number(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        text = "x" * MAX_MESSAGE_BYTES
        with pytest.raises(RemoteError, match=f"the limit is {MAX_MESSAGE_BYTES}") as refused:
            await both.infer(text)
        assert refused.value.ended.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        async with both.generate(text, 1) as answers:
            with pytest.raises(RemoteError, match=f"the limit is {MAX_MESSAGE_BYTES}"):
                await anext(answers)


async def test_a_call_that_is_closed_stops_its_work(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        async with both.generate("word", 1, "endless") as answers:
            await anext(answers)
            assert not both.servicer.stopped.is_set()
        await asyncio.wait_for(both.servicer.stopped.wait(), 60)
        assert await both.infer("the next") == "the next"


async def test_a_call_that_takes_too_long_stops_its_work(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        async with both.generate("word", 1, "endless", timeout=0.05) as answers:
            with pytest.raises(TimeoutError):
                [each async for each in answers]
        await asyncio.wait_for(both.servicer.stopped.wait(), 60)


async def test_the_end_of_the_connection_ends_its_calls(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        async with both.generate("word", 1, "endless") as answers:
            await anext(answers)
            both.link.close()
            with pytest.raises(WorkerUnavailableError):
                await anext(answers)
        await asyncio.wait_for(both.servicer.stopped.wait(), 60)
        with pytest.raises(WorkerUnavailableError):
            await both.infer("afterwards")


async def test_answers_wait_for_a_slow_reader(tmp_path: Path) -> None:
    async with ends(tmp_path) as both, both.generate("x" * PART, 40) as answers:
        await anext(answers)
        # The window, and the one that the handler holds.
        await reaches(1 + 4, lambda: both.servicer.sent)
        assert await both.infer("others go on") == "others go on"
        assert len([each async for each in answers]) == 39


async def test_requests_wait_for_a_slow_reader(tmp_path: Path) -> None:
    drawn = 0

    async def many() -> AsyncIterator[bytes]:
        nonlocal drawn
        async for request in requests(40, prompt_name="stall"):
            drawn += 1
            yield request + pb.GenerateEmbeddingsRequest(texts=["x" * PART]).SerializeToString()

    async with ends(tmp_path) as both, both.embed(many()) as answers:
        reading = asyncio.ensure_future(anext(answers))
        await reaches(1 + 4, lambda: drawn)
        assert both.servicer.read == 1
        reading.cancel()
        await asyncio.wait({reading})
    assert drawn == 5


async def test_a_handler_may_leave_requests_unread(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        async with both.embed(requests(9, prompt_name="enough")) as answers:
            assert [each async for each in answers] == []
        assert await both.infer("the next") == "the next"


async def test_a_source_of_requests_that_fails_fails_the_call(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        async for request in requests(1):
            yield request
        raise ConnectionError("the caller's stream broke")

    async with ends(tmp_path) as both, both.embed(broken()) as answers:
        with pytest.raises(ConnectionError, match="broke"):
            [each async for each in answers]
