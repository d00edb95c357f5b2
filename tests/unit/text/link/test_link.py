"""The link between text_svc and a model's process: calls of every kind over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from ml import transformers_pb2 as pb
from ml.internal.link_pb2 import MemoryFigures
from shared.errors import InputTooLargeError, ServiceError, WorkerUnavailableError
from shared.rpc.status import status_of
from shared.telemetry.logs import request_id
from tests.support.waiting import until
from text_svc.link.call import WINDOW_BYTES
from text_svc.link.client import Link
from text_svc.link.server import Activity, Handlers, listen

METADATA = {"x-request-id": "a call"}
PART = WINDOW_BYTES // 4
MAX_MESSAGE_BYTES = 8 * WINDOW_BYTES


class Answering:
    """Answers by the prompt, and counts what it has done."""

    def __init__(self) -> None:
        self.sent = 0
        self.read = 0
        self.stuck = 0
        self.cache_bytes = 0
        self.activity = Activity()
        self.stopped = asyncio.Event()

    def table(self) -> Handlers:
        return {
            "Infer": self.infer,
            "GenerateText": self.generate_text,
            "StreamEmbeddings": self.stream_embeddings,
        }

    async def infer(self, request: pb.InferRequest) -> pb.InferResponse:
        if request.text == "too long":
            raise InputTooLargeError("over the limit of 7", metadata={"limit": "7"})
        if request.text == "bug":
            raise ZeroDivisionError
        if request.text == "endless":
            try:
                await asyncio.Event().wait()
            finally:
                self.stopped.set()
        if request.text == "request id":
            return pb.InferResponse(text=request_id())
        return pb.InferResponse(text=request.text)

    async def generate_text(self, request: pb.TextRequest) -> AsyncIterator[pb.TextResponse]:
        try:
            for _ in range(request.max_length):
                self.sent += 1
                yield pb.TextResponse(text=request.prompt)
            if request.model == "done":
                usage = pb.GenerationUsage(prompt_tokens=3, generated_tokens=request.max_length)
                yield pb.TextResponse(done=True, usage=usage)
            if request.model == "fails":
                raise InputTooLargeError("over the limit of 7")
            if request.model == "endless":
                await asyncio.Event().wait()
        finally:
            self.stopped.set()

    async def stream_embeddings(
        self, requests: AsyncIterator[pb.GenerateEmbeddingsRequest]
    ) -> AsyncIterator[pb.GeneratedEmbeddingsResponse]:
        async for request in requests:
            self.read += 1
            if request.prompt_name == "enough":
                return
            if request.prompt_name == "stall":
                await asyncio.Event().wait()
            yield pb.GeneratedEmbeddingsResponse(tokens=len(request.texts))


class Ends:
    """Both ends of a link."""

    def __init__(self, link: Link, handlers: Answering, server: asyncio.Server) -> None:
        self.link = link
        self.handlers = handlers
        self.server = server

    async def infer(self, text: str) -> str:
        request = pb.InferRequest(text=text).SerializeToString()
        answer = await self.link.unary("Infer", request, metadata=METADATA)
        return pb.InferResponse.FromString(answer.data).text

    def generate(self, prompt: str, count: int, model: str = "", **options: Any) -> Any:
        request = pb.TextRequest(model=model, prompt=prompt, max_length=count).SerializeToString()
        return aclosing(self.link.call("GenerateText", request, metadata=METADATA, **options))

    def embed(self, requests: AsyncIterator[bytes]) -> Any:
        return aclosing(self.link.call("StreamEmbeddings", requests, metadata=METADATA))


@asynccontextmanager
async def ends(folder: Path) -> AsyncIterator[Ends]:
    handlers = Answering()
    server = await listen(
        handlers.table(),
        folder / "link.sock",
        max_message_bytes=MAX_MESSAGE_BYTES,
        stuck=lambda: handlers.stuck,
        memory=lambda: MemoryFigures(cache_bytes=handlers.cache_bytes, cache_limit_bytes=9),
        activity=handlers.activity,
    )
    link = await Link.connect(folder / "link.sock", lambda: WorkerUnavailableError("gone"))
    try:
        yield Ends(link, handlers, server)
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
            assert [pb.TextResponse.FromString(each.data).text async for each in answers] == [
                text
            ] * 3


async def test_streams_both_ways(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        async with both.generate("word", 1000) as answers:
            assert len([each async for each in answers]) == 1000
        async with both.embed(requests(20)) as answers:
            tokens = [
                pb.GeneratedEmbeddingsResponse.FromString(one.data).tokens async for one in answers
            ]
        assert tokens == list(range(1, 21))


async def test_usage_comes_beside_the_messages(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        async with both.generate("word", 2, "done") as answers:
            *words, last = [each async for each in answers]
        assert [(word.usage, word.done) for word in words] == [(None, False)] * 2
        assert last.done
        assert last.usage.generation == pb.TextResponse.FromString(last.data).usage
        assert last.usage.generation.generated_tokens == 2
        async with both.embed(requests(3)) as answers:
            embedded = [each async for each in answers]
        assert [each.usage.embedding.tokens for each in embedded] == [1, 2, 3]
        assert not any(each.done for each in embedded)


async def test_an_rpc_that_the_model_does_not_answer_is_refused(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        with pytest.raises(ServiceError, match="does not support ChatCompletion") as refused:
            await anext(both.link.call("ChatCompletion", b"", metadata=METADATA))
        assert refused.value.code is grpc.StatusCode.UNIMPLEMENTED


async def test_an_error_keeps_its_code_and_details(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        with pytest.raises(InputTooLargeError, match="limit of 7") as refused:
            await both.infer("too long")
        sent = InputTooLargeError("over the limit of 7", metadata={"limit": "7"})
        assert refused.value.metadata["limit"] == "7"
        assert refused.value.code is InputTooLargeError.code
        assert status_of(refused.value) == status_of(sent)
        with pytest.raises(ServiceError, match="internal error") as failed:
            await both.infer("bug")
        assert failed.value.code is grpc.StatusCode.INTERNAL
        async with both.generate("word", 2, "fails") as answers:
            assert [await anext(answers) for _ in range(2)]
            with pytest.raises(InputTooLargeError, match="limit of 7"):
                await anext(answers)
        assert await both.infer("the next") == "the next"


async def test_an_answer_over_the_limit_is_refused_with_the_number(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        text = "x" * MAX_MESSAGE_BYTES
        with pytest.raises(ServiceError, match=f"the limit is {MAX_MESSAGE_BYTES}") as refused:
            await both.infer(text)
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with both.generate(text, 1) as answers:
            with pytest.raises(ServiceError, match=f"the limit is {MAX_MESSAGE_BYTES}"):
                await anext(answers)


async def test_a_call_that_is_closed_stops_its_work(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        async with both.generate("word", 1, "endless") as answers:
            await anext(answers)
            assert not both.handlers.stopped.is_set()
        await asyncio.wait_for(both.handlers.stopped.wait(), 60)
        assert await both.infer("the next") == "the next"


async def test_a_call_that_takes_too_long_stops_its_work(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        async with both.generate("word", 1, "endless", timeout=0.05) as answers:
            with pytest.raises(TimeoutError):
                [each async for each in answers]
        await asyncio.wait_for(both.handlers.stopped.wait(), 60)


@pytest.mark.parametrize("end", ["cancelled", "too long", "connection"])
async def test_a_call_with_one_answer_that_ends_early_stops_its_work(
    tmp_path: Path, end: str
) -> None:
    request = pb.InferRequest(text="endless").SerializeToString()
    async with ends(tmp_path) as both:
        timeout = 0.05 if end == "too long" else None
        answer = asyncio.create_task(
            both.link.unary("Infer", request, metadata=METADATA, timeout=timeout)
        )
        assert await both.infer("meanwhile") == "meanwhile"
        if end == "cancelled":
            answer.cancel()
        if end == "connection":
            both.link.close()
        with pytest.raises((asyncio.CancelledError, TimeoutError, WorkerUnavailableError)):
            await answer
        await asyncio.wait_for(both.handlers.stopped.wait(), 60)
        assert not both.link._calls


async def test_the_end_of_the_connection_ends_its_calls(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        async with both.generate("word", 1, "endless") as answers:
            await anext(answers)
            both.link.close()
            with pytest.raises(WorkerUnavailableError):
                await anext(answers)
        await asyncio.wait_for(both.handlers.stopped.wait(), 60)
        with pytest.raises(WorkerUnavailableError):
            await both.infer("afterwards")


async def test_answers_wait_for_a_slow_reader(tmp_path: Path) -> None:
    async with ends(tmp_path) as both, both.generate("x" * PART, 40) as answers:
        await anext(answers)
        # The window, and the one that the handler holds.
        await reaches(1 + 4, lambda: both.handlers.sent)
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
        assert both.handlers.read == 1
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


async def test_memory_figures_are_those_of_the_moment(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        for cache_bytes in (0, 1 << 40):
            both.handlers.cache_bytes = cache_bytes
            told = await asyncio.gather(both.link.measure(), both.link.measure())
            assert [(each.cache_bytes, each.cache_limit_bytes) for each in told] == [
                (cache_bytes, 9)
            ] * 2


async def test_a_model_is_idle_while_it_has_no_calls(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        idle_seconds = both.handlers.activity.idle_seconds
        await until(lambda: idle_seconds() > 0)
        async with both.generate("a", 1, "endless") as first, both.generate("b", 1) as second:
            await anext(first)
            assert idle_seconds() == 0
            await anext(second)
            assert idle_seconds() == 0
        await until(lambda: idle_seconds() > 0)


async def test_a_ping_is_answered_with_what_is_stuck(tmp_path: Path) -> None:
    async with ends(tmp_path) as both:
        for stuck in (2, 0):
            both.handlers.stuck = stuck
            both.link.ping()
            both.link.ping()
            assert both.link.unanswered == 2
            async with asyncio.timeout(60):
                while both.link.unanswered:
                    await asyncio.sleep(0.01)
            assert both.link.stuck == stuck
        assert await both.infer("a call") == "a call"


async def test_an_aborted_connection_ends_its_calls(tmp_path: Path) -> None:
    async with ends(tmp_path) as both, both.generate("word", 1, "endless") as answers:
        await anext(answers)
        both.link.abort()
        with pytest.raises(WorkerUnavailableError):
            await anext(answers)


async def test_calls_end_though_why_the_process_ended_cannot_be_learnt(tmp_path: Path) -> None:
    async def learn_end() -> None:
        raise OSError

    async with ends(tmp_path) as here:
        link = await Link.connect(
            tmp_path / "link.sock", lambda: WorkerUnavailableError("gone"), learn_end
        )
        request = pb.TextRequest(max_length=1, model="endless").SerializeToString()
        async with aclosing(link.call("GenerateText", request, metadata=METADATA)) as answers:
            await anext(answers)
            link.close()
            with pytest.raises(WorkerUnavailableError):
                async with asyncio.timeout(60):
                    await anext(answers)
        await here.handlers.stopped.wait()
