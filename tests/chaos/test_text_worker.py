"""Processes of text_svc that are killed: what their callers see, and what the others see."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from ml import transformers_pb2 as pb
from ml.internal import worker_pb2
from tests.support import tiny_models, tiny_text
from tests.support.folders import MakeFolder
from tests.support.stack import wait_for
from tests.support.text_service import READY, TextClient, TextService, text_service
from tests.support.waiting import until

FIRST, SECOND, EMBEDDER = "tiny/first", "tiny/second", "tiny/bert"
LONG = 3000


@pytest.fixture(scope="module")
def service(module_folder: MakeFolder) -> Iterator[TextService]:
    models = module_folder("models")
    for seed, name in enumerate((FIRST, SECOND)):
        tiny_text.save_llama(models / name, seed=seed)
    tiny_models.build("bert", models / EMBEDDER)
    with text_service(models, module_folder("service")) as running:
        yield running


@pytest.fixture
async def client(service: TextService) -> AsyncIterator[TextClient]:
    async with service.client() as connected:
        yield connected


def worker_of(service: TextService, model: str) -> psutil.Process:
    """The process that serves a model."""
    return service.children("text_svc.worker ", model)[0]


def engine_of(service: TextService, model: str) -> psutil.Process:
    """The process that computes for it."""
    children = worker_of(service, model).children()
    return next(child for child in children if "openvino_process" in " ".join(child.cmdline()))


async def listen(client: TextClient, model: str, started: asyncio.Event) -> tuple[str, object]:
    """A long answer: its text, and its last message or the code of its end."""
    text = ""
    request = pb.TextRequest(model=model, prompt="the sea", max_length=LONG, temperature=0)
    try:
        async for response in client.text.GenerateText(request):
            text += response.text
            started.set()
    except grpc.aio.AioRpcError as error:
        return text, error.code()
    finally:
        started.set()  # who waits for the start is not to wait for ever
    return text, response


@pytest.mark.parametrize("victim", [worker_of, engine_of])
async def test_a_dead_process_ends_its_own_callers_and_no_others(
    client: TextClient,
    service: TextService,
    victim: Callable[[TextService, str], psutil.Process],
) -> None:
    await client.load(FIRST)
    await client.load(SECOND)
    whole, _ = await listen(client, SECOND, asyncio.Event())
    begun = [asyncio.Event() for _ in range(6)]
    firsts = [asyncio.ensure_future(listen(client, FIRST, each)) for each in begun[:3]]
    seconds = [asyncio.ensure_future(listen(client, SECOND, each)) for each in begun[3:]]
    await asyncio.gather(*(each.wait() for each in begun))
    victim(service, FIRST).kill()
    for _, end in await asyncio.gather(*firsts):
        assert end is grpc.StatusCode.UNAVAILABLE
    for text, last in await asyncio.gather(*seconds):
        assert isinstance(last, pb.TextResponse)
        assert last.tokens_generated == LONG
        assert text == whole

    def failed() -> bool:
        return not service.children("text_svc.worker ", FIRST)

    await asyncio.to_thread(wait_for, "the end of both processes", failed)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.generate(model=FIRST, prompt="the sea", max_length=1)
    assert caught.value.code() in (
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNAVAILABLE,
    )
    _, model = await client.load(FIRST)
    assert model.state == READY
    _, last = await client.generate(model=FIRST, prompt="the sea", max_length=3)
    assert last.done


async def test_an_unload_that_waits_no_longer_ends_the_calls_that_run(
    tmp_path: Path, service: TextService
) -> None:
    impatient = {
        "TEXT_UNLOAD_GRACE_SECONDS": "0",
        "TEXT_CONVERTED_DIR": str(service.converted),
    }
    with text_service(service.models, tmp_path, impatient) as other:
        async with other.client() as client:
            await client.load(FIRST)
            begun = [asyncio.Event() for _ in range(3)]
            answers = [asyncio.ensure_future(listen(client, FIRST, each)) for each in begun]
            await asyncio.gather(*(each.wait() for each in begun))
            await client.unload(FIRST)
            for _, end in await asyncio.gather(*answers):
                assert end is grpc.StatusCode.UNAVAILABLE
            assert FIRST not in await client.models()


async def test_an_unload_goes_on_without_its_caller_and_with_others(
    tmp_path: Path, service: TextService
) -> None:
    """A call that runs has its grace, whoever unloads, goes away, or unloads again."""
    patient = {
        "TEXT_UNLOAD_GRACE_SECONDS": "600",
        "TEXT_CONVERTED_DIR": str(service.converted),
    }
    with text_service(service.models, tmp_path, patient) as other:
        async with other.client() as client:
            await client.load(EMBEDDER, "embeddings")
            stream = client.text.StreamEmbeddings()
            await stream.write(pb.GenerateEmbeddingsRequest(model=EMBEDDER, texts=["the sea"]))
            await stream.read()

            async def unloading() -> bool:
                return (await client.models())[EMBEDDER] == worker_pb2.MODEL_STATE_UNLOADING

            unload = worker_pb2.UnloadRequest(model_id=EMBEDDER)
            first = client.worker.Unload(unload)
            await until(unloading)
            first.cancel()
            second = asyncio.ensure_future(client.unload(EMBEDDER))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.worker.Unload(unload, timeout=0.5)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await stream.write(pb.GenerateEmbeddingsRequest(texts=["the sky"]))
            answer = await stream.read()
            assert answer.first_text == 1
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
            await second
            assert EMBEDDER not in await client.models()


async def test_a_killed_conversion_is_said_and_the_next_one_works(
    client: TextClient, service: TextService
) -> None:
    if FIRST in await client.models():
        await client.unload(FIRST)
    request = worker_pb2.LoadRequest(
        model_id=FIRST, pipeline_type="text-generation", options={"dtype": "int8"}
    )
    killed = False
    with pytest.raises(grpc.aio.AioRpcError, match="SIGKILL") as caught:
        async for _ in client.worker.Load(request):
            if not killed and list(service.converted.rglob(".part-*")):
                service.children("text_svc.convert")[0].kill()
                killed = True
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert not list(service.converted.rglob(".part-*"))
    _, model = await client.load(FIRST, dtype="int8")
    assert model.engine == "openvino"
