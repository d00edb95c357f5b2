"""The front between a client and a model's process: it forwards bytes and counts what they cost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from prometheus_client import REGISTRY

from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc
from shared.errors import InputTooLargeError, InternalError
from shared.model_host import ModelLife, ModelNames
from shared.model_ids import ModelId
from shared.rpc.server import create_server
from shared.rpc.status import from_details
from shared.settings import ServerSettings
from tests.support.waiting import until
from text_svc.link.call import Payload
from text_svc.link.client import Link
from text_svc.link.server import listen
from text_svc.models.registry import Registry
from text_svc.service import NAME, TransformersForwarder

MODEL = "front/of-service-tests"
# A field that this set does not know, as a newer client may send it.
UNKNOWN_FIELD = b"\xfa\x3f\x03new"


class Model:
    """Handlers, and the registry that lends the link to them."""

    def __init__(self) -> None:
        self.link: Link
        self.requests: list[Any] = []
        self.used: list[str] = []

    async def generate_text(self, request: pb.TextRequest) -> AsyncIterator[pb.TextResponse]:
        self.requests.append(request)
        if request.prompt == "too long":
            raise InputTooLargeError("over the limit of 7", metadata={"limit": "7"})
        yield pb.TextResponse(text="word", tokens_generated=1)
        yield pb.TextResponse(done=True, usage=pb.GenerationUsage(generated_tokens=1))

    async def generate_embeddings(
        self, request: pb.GenerateEmbeddingsRequest
    ) -> pb.GeneratedEmbeddingsResponse:
        vector = pb.GeneratedEmbedding(values=[1.0])
        return pb.GeneratedEmbeddingsResponse(embeddings=[vector] * len(request.texts), tokens=5)

    async def stream_embeddings(
        self, requests: AsyncIterator[pb.GenerateEmbeddingsRequest]
    ) -> AsyncIterator[pb.GeneratedEmbeddingsResponse]:
        async for request in requests:
            yield await self.generate_embeddings(request)

    @asynccontextmanager
    async def use(self, model_id: str, call: str) -> AsyncIterator[Model]:
        self.used.append(model_id)
        yield self

    def stream(self, rpc: str, requests: Any, timeout: float | None) -> AsyncIterator[Payload]:
        return self.link.call(rpc, requests, metadata={}, timeout=timeout)

    async def unary(self, rpc: str, request: bytes, timeout: float | None) -> Payload:
        return await self.link.unary(rpc, request, metadata={}, timeout=timeout)


@asynccontextmanager
async def front(
    folder: Path, names: ModelNames | None = None
) -> AsyncIterator[tuple[grpc.aio.Channel, Model]]:
    model = Model()
    handlers = {
        "GenerateText": model.generate_text,
        "GenerateEmbeddings": model.generate_embeddings,
        "StreamEmbeddings": model.stream_embeddings,
    }
    worker = await listen(handlers, folder / "link.sock", max_message_bytes=1 << 20)
    model.link = await Link.connect(folder / "link.sock", lambda: InternalError("gone"))
    server = create_server(ServerSettings())
    TransformersForwarder(cast(Registry, model), names).register(server)
    server.add_insecure_port(f"unix:{folder}/front.sock")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{folder}/front.sock") as channel:
        yield channel, model
    await server.stop(None)
    model.link.close()
    worker.close()


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


@pytest.mark.parametrize("sent", [{}, {"temperature": 0.9}])
async def test_metadata_ask_for_a_greedy_answer(tmp_path: Path, sent: dict[str, float]) -> None:
    request = pb.TextRequest(model=MODEL, prompt="p", stop=["s"], **sent)  # type: ignore[arg-type]
    async with front(tmp_path) as (channel, model):
        stub = transformers_pb2_grpc.TransformersServiceStub(channel)
        for word in ("true", "TRUE", "false"):
            _ = [each async for each in stub.GenerateText(request, metadata=[("greedy", word)])]
        with pytest.raises(grpc.aio.AioRpcError, match="must be one of true, false") as caught:
            _ = [each async for each in stub.GenerateText(request, metadata=[("greedy", "yes")])]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    greedy = pb.TextRequest(model=MODEL, prompt="p", stop=["s"], temperature=0)
    assert model.requests == [greedy, greedy, request]
    assert model.requests[0].HasField("temperature")


async def test_a_call_under_another_name_reaches_the_model(tmp_path: Path) -> None:
    names = ModelNames()
    names.replace([ModelLife(ModelId(MODEL), (ModelId("other"), ModelId("org/alias")))])
    request = pb.GenerateEmbeddingsRequest(model="models/other/model.safetensors", texts=["a"])
    text = pb.TextRequest(model="org/alias", prompt="p")
    async with front(tmp_path, names) as (channel, model):
        stub = transformers_pb2_grpc.TransformersServiceStub(channel)
        await stub.GenerateEmbeddings(request)
        assert [each async for each in stub.GenerateText(text)]
    assert model.used == [MODEL, MODEL]


async def test_bytes_pass_unchanged_in_both_directions(tmp_path: Path) -> None:
    async with front(tmp_path) as (channel, model):
        call = channel.unary_stream(f"/{NAME}/GenerateText")
        request = pb.TextRequest(model=MODEL, prompt="hello").SerializeToString() + UNKNOWN_FIELD
        received = [response async for response in call(request)]
    assert [one.SerializeToString() for one in model.requests] == [request]
    assert [pb.TextResponse.FromString(each).done for each in received] == [False, True]


async def test_usage_is_counted_by_model(tmp_path: Path) -> None:
    texts = counted("text_embedded_texts_total", model=MODEL)
    tokens = counted("text_embedded_tokens_total", model=MODEL)
    request = pb.GenerateEmbeddingsRequest(model=MODEL, texts=["a", "b"])
    async with front(tmp_path) as (channel, _):
        stub = transformers_pb2_grpc.TransformersServiceStub(channel)
        await stub.GenerateEmbeddings(request)
        assert len([each async for each in stub.StreamEmbeddings(iter([request] * 2))]) == 2
    assert counted("text_embedded_texts_total", model=MODEL) == texts + 3 * 2
    assert counted("text_embedded_tokens_total", model=MODEL) == tokens + 3 * 5


async def test_a_stream_that_its_client_drops_after_the_last_response_is_a_success(
    tmp_path: Path,
) -> None:
    labels = {"grpc_type": "server_stream", "grpc_service": NAME, "grpc_method": "GenerateText"}

    def ended() -> float:
        codes = ("OK", "CANCELLED")
        return sum(counted("grpc_server_handled_total", **labels, grpc_code=c) for c in codes)

    generated = counted("text_generated_tokens_total", model=MODEL)
    cancelled = counted("grpc_server_handled_total", **labels, grpc_code="CANCELLED")
    before = ended()
    async with front(tmp_path) as (channel, _):
        stub = transformers_pb2_grpc.TransformersServiceStub(channel)
        call = stub.GenerateText(pb.TextRequest(model=MODEL, prompt="hello"))
        while not (await call.read()).done:
            pass
        call.cancel()
        await until(lambda: ended() == before + 1)
    assert counted("grpc_server_handled_total", **labels, grpc_code="CANCELLED") == cancelled
    assert counted("text_generated_tokens_total", model=MODEL) == generated + 1


async def test_an_error_of_the_process_reaches_the_client_whole(tmp_path: Path) -> None:
    async with front(tmp_path) as (channel, _):
        stub = transformers_pb2_grpc.TransformersServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="over the limit of 7") as caught:
            await stub.GenerateText(pb.TextRequest(model=MODEL, prompt="too long")).read()
    error = from_details(caught.value)
    assert isinstance(error, InputTooLargeError)
    assert error.metadata == {"limit": "7"}


@pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
async def test_a_request_that_cannot_be_decoded_is_refused(tmp_path: Path, kind: str) -> None:
    async with front(tmp_path) as (channel, _):
        if kind == "unary_unary":
            call = channel.unary_unary(f"/{NAME}/GenerateEmbeddings")(b"\xff")
        else:
            stream = channel.stream_stream(f"/{NAME}/StreamEmbeddings")(iter([b"\xff"]))
            call = stream.read()
        with pytest.raises(grpc.aio.AioRpcError, match="cannot be decoded") as caught:
            await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
