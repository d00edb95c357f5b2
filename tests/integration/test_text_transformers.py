"""The transformers engine over the wire: many callers in one batch, cancelled and expired ones."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest

from ml import transformers_pb2 as pb
from tests.support import sentence_layouts, tiny_models, tiny_text
from tests.support.embeddings import expected
from tests.support.folders import MakeFolder
from tests.support.stack import wait_for
from tests.support.strange_models import change_json
from tests.support.text_service import READY, TextClient, TextService, text_service

LLAMA = "tiny/llama"
LONG = 3000
# Of the cache: keys and values of two layers with two heads of 16 numbers.
TOKEN_BYTES = 2 * 2 * 2 * 16 * 4
ENGINE = {"engine": "transformers", "max_sequences": "16", "cache_size_mb": "128"}
PROMPTS = [f"{number} the sea and the sky, " * (1 + number) for number in range(16)]


@pytest.fixture(scope="module")
def service(module_folder: MakeFolder) -> Iterator[TextService]:
    models = module_folder("models")
    tiny_text.save_llama(models / LLAMA, chat_template=tiny_text.TOOLS_TEMPLATE)
    with text_service(models, module_folder("service")) as running:
        yield running


@pytest.fixture
async def client(service: TextService) -> AsyncIterator[TextClient]:
    async with service.client() as connected:
        if LLAMA not in await connected.models():
            _, model = await connected.load(LLAMA, **ENGINE)
            assert model.engine == "transformers"
            # The cache may become 16 answers of all the context; it takes nothing before its use.
            assert model.cache_limit_bytes == 16 * tiny_text.CONTEXT * TOKEN_BYTES
            assert model.cache_bytes == 0
        yield connected


def wanted(index: int) -> dict[str, object]:
    """A caller's own parameters."""
    varied: list[dict[str, object]] = [
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 0.8, "top_p": 0.9, "seed": index},
        {"temperature": 1.2, "top_k": 20, "seed": index},
    ]
    prompt = PROMPTS[index]
    return {"model": LLAMA, "prompt": prompt, "max_length": 20 + index, **varied[index % 4]}


async def idle(service: TextService) -> None:
    def nothing_runs() -> bool:
        return service.metric("text_running_answers", LLAMA) == 0

    await asyncio.to_thread(wait_for, "idleness", nothing_runs)
    assert service.metric("text_waiting_answers", LLAMA) == 0


async def leave(client: TextClient, index: int, messages: int) -> None:
    """Begins a long answer and goes away after so many messages."""
    request = pb.TextRequest(model=LLAMA, prompt=PROMPTS[index % 16], max_length=LONG)
    call = client.text.GenerateText(request)
    for _ in range(messages):
        await call.read()
    call.cancel()


async def test_texts_are_the_same_alone_and_among_others_who_leave(
    client: TextClient, service: TextService
) -> None:
    alone = [(await client.generate(**wanted(index)))[0] for index in range(16)]
    assert all(alone)
    steps = service.metric("text_batch_answers_count", LLAMA)
    answers = service.metric("text_batch_answers_sum", LLAMA)
    results = await asyncio.gather(
        *(client.generate(**wanted(index)) for index in range(16)),
        *(leave(client, index, index % 4) for index in range(12)),
    )
    among = [result[0] for result in results[:16]]
    assert among == alone
    assert [result[1].tokens_generated for result in results[:16]] == [20 + i for i in range(16)]
    await idle(service)
    steps = service.metric("text_batch_answers_count", LLAMA) - steps
    assert (service.metric("text_batch_answers_sum", LLAMA) - answers) / steps > 2


async def test_calls_of_tools_are_forced(client: TextClient) -> None:
    """Of a model that would write nonsense, beside an answer that is free."""
    free = {"model": LLAMA, "prompt": "the sea", "max_length": 40, "temperature": 0.0}
    alone, _ = await client.generate(**free)
    schema = {
        "type": "object",
        "properties": {"unit": {"enum": ["C", "F"]}, "now": {"type": "boolean"}},
        "required": ["unit", "now"],
    }
    request = pb.ChatRequest(
        model=LLAMA,
        messages=[pb.ChatMessage(role="user", content="the sea?")],
        tools=[pb.Tool(name="other"), pb.Tool(name="weather", parameters=json.dumps(schema))],
        tool_name="weather",
        think=False,
        seed=1,
        max_tokens=400,
    )

    async def call() -> list[pb.ChatResponse]:
        return [response async for response in client.text.ChatCompletion(request)]

    responses, (beside, _) = await asyncio.gather(call(), client.generate(**free))
    assert responses[-1].finish_reason == "tool_calls"
    assert not any(response.content for response in responses)
    deltas = [delta for response in responses for delta in response.tool_calls]
    assert [delta.name for delta in deltas if delta.name] == ["weather"]
    arguments = json.loads("".join(delta.arguments for delta in deltas))
    assert arguments.keys() == {"unit", "now"}
    assert arguments["unit"] in ("C", "F")
    assert isinstance(arguments["now"], bool)
    assert beside == alone
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.generate(**free, response_format=pb.ResponseFormat(regex="(a"))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stop_string_ends_one_answer_of_a_batch(client: TextClient) -> None:
    request = {"model": LLAMA, "prompt": "the sea", "max_length": 40, "temperature": 0.0}
    whole, _ = await client.generate(**request)
    stop = whole[len(whole) // 2 :][:5]
    (cut, last), (text, _) = await asyncio.gather(
        client.generate(**request, stop=[stop]), client.generate(**request)
    )
    assert cut == whole[: whole.index(stop)]
    assert last.finish_reason == "stop"
    assert text == whole


async def test_a_deadline_frees_the_place(client: TextClient, service: TextService) -> None:
    request = pb.TextRequest(model=LLAMA, prompt="the sea", max_length=LONG, temperature=0)

    async def expire() -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in client.text.GenerateText(request, timeout=0.3):
                pass
        return caught.value.code()

    codes = await asyncio.gather(*(expire() for _ in range(16)))
    assert set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED}
    await idle(service)


async def test_cancelled_streams_leave_no_work_and_no_memory(
    client: TextClient, service: TextService
) -> None:
    async def memory_after(streams: int) -> int:
        for start in range(0, streams, 20):
            await asyncio.gather(*(leave(client, start + each, each % 3) for each in range(20)))
        await idle(service)
        return sum(child.memory_info().rss for child in service.children("text_svc.worker"))

    before = await memory_after(200)
    after = await memory_after(800)
    assert after - before < 24 << 20
    text, last = await client.generate(**wanted(0))
    assert (bool(text), last.tokens_generated) == (True, 20)


async def test_a_prompt_over_the_cache_is_refused_with_the_limit(client: TextClient) -> None:
    model = "tiny/llama"
    await client.unload(model)
    await client.load(model, engine="transformers", cache_size_mb="1")
    with pytest.raises(grpc.aio.AioRpcError, match=r"limit is \d+, generated") as caught:
        await client.generate(model=model, prompt="é" * 3900, max_length=1)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    _, last = await client.generate(model=model, prompt="the sea", max_length=5, temperature=0)
    assert last.tokens_generated == 5
    await client.unload(model)


async def test_a_model_that_would_fail_at_each_call_does_not_load(
    client: TextClient, service: TextService
) -> None:
    folder = tiny_models.build("t5", service.models / "tiny" / "no-start-token")
    for name in ("config.json", "generation_config.json"):
        change_json(folder / name, decoder_start_token_id=None)
    with pytest.raises(grpc.aio.AioRpcError, match="`decoder_start_token_id`") as caught:
        await client.load("tiny/no-start-token", "summarization", engine="transformers")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await client.models())["tiny/no-start-token"] != READY


async def test_embedding_models_with_folders_of_their_own(service: TextService) -> None:
    """Their files are fetched, inspected, converted and loaded, each step in its own process."""
    async with service.client() as client:
        for name in ("sub_folder", "static", "last_token"):
            folder = service.models / "tiny" / name
            sentence_layouts.LAYOUTS[name](folder)
            _, model = await client.load(f"tiny/{name}", "feature-extraction")
            assert (model.engine, model.note) == ("openvino", ""), name
            texts = ["hello world", "a photo of the sea"]
            request = pb.GenerateEmbeddingsRequest(model=f"tiny/{name}", texts=texts)
            answer = await client.text.GenerateEmbeddings(request)
            got = np.array([each.values for each in answer.embeddings])
            reference = expected(folder, texts)
            assert np.abs(got - reference).max() < 1e-4 * np.abs(reference).max(), name
            await client.unload(f"tiny/{name}")
