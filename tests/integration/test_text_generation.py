"""Models of text_svc over the wire: conversion, what is refused, what is cancelled."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from ml import transformers_pb2 as pb
from ml.internal import worker_pb2
from tests.support import tiny_text
from tests.support.folders import MakeFolder
from tests.support.stack import wait_for
from tests.support.text_service import READY, TextClient, TextService, text_service

CONVERTING = worker_pb2.MODEL_STATE_CONVERTING
LLAMA, MAMBA = "tiny/llama", "tiny/mamba"
LONG = 3000


@pytest.fixture(scope="module")
def service(module_folder: MakeFolder) -> Iterator[TextService]:
    models = module_folder("models")
    tiny_text.save_llama(models / LLAMA)
    tiny_text.save_mamba(models / MAMBA)
    with text_service(models, module_folder("service")) as running:
        yield running


@pytest.fixture
async def client(service: TextService) -> AsyncIterator[TextClient]:
    async with service.client() as connected:
        yield connected


@pytest.fixture
async def llama(client: TextClient) -> TextClient:
    """A client, with the tiny Llama loaded."""
    if LLAMA not in await client.models():
        await client.load(LLAMA)
    return client


def code_of(error: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> grpc.StatusCode:
    return error.value.code()


async def test_conversion_is_a_state_and_its_result_is_kept(client: TextClient) -> None:
    states, model = await client.load(LLAMA)
    assert states[-2:] == [worker_pb2.MODEL_STATE_LOADING, READY]
    assert CONVERTING in states
    assert (model.engine, model.note) == ("openvino", "")
    await client.unload(LLAMA)
    states, model = await client.load(LLAMA)
    assert CONVERTING not in states
    assert model.engine == "openvino"


async def test_the_process_of_an_openvino_model_has_neither_torch_nor_transformers(
    llama: TextClient, service: TextService
) -> None:
    await llama.generate(model=LLAMA, prompt="the sea", max_length=2)
    processes = service.children("text_svc.worker")
    assert len(processes) >= 2
    for process in processes:
        assert not [each.path for each in process.memory_maps() if "libtorch" in each.path]


async def test_answers_have_the_form_that_a_call_asks_for(llama: TextClient) -> None:
    """In the model's own processes, with what they may read and write."""
    form = pb.ResponseFormat(regex="(yes|no)-[0-9]{3}")
    asked = {"model": LLAMA, "prompt": "the sea", "max_length": 60, "temperature": 1.5}
    text, last = await llama.generate(**asked, response_format=form)
    assert re.fullmatch("(yes|no)-[0-9]{3}", text)
    assert last.finish_reason == "stop"
    chat = pb.ChatRequest(
        model=LLAMA,
        messages=[pb.ChatMessage(role="user", content="?")],
        response_format=pb.ResponseFormat(choice=pb.Choices(texts=["red", "blue"])),
        n=2,
        logprobs=True,
    )
    messages = [message async for message in llama.text.ChatCompletion(chat)]
    for index in range(2):
        own = [message for message in messages if message.index == index]
        assert "".join(message.content for message in own) in ("red", "blue")
        assert [message.finish_reason for message in own if message.finish_reason] == ["stop"]
        logprobs = [each for message in own for each in message.logprobs]
        assert b"".join(each.utf8 for each in logprobs) in (b"red", b"blue")
        assert all(each.logprob <= 0 for each in logprobs)
    assert [message.done for message in messages] == [False] * (len(messages) - 1) + [True]
    for refused in (
        {"response_format": pb.ResponseFormat(regex="(a")},
        {"response_format": pb.ResponseFormat(json_schema='{"not": {}}')},
        {"response_format": pb.ResponseFormat()},
        {"logit_bias": {3: 1.0}},
        {"echo": True},
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await llama.generate(**asked, **refused)
        assert code_of(caught) is grpc.StatusCode.INVALID_ARGUMENT
    counted = await llama.text.TokenCount(pb.TokenCountRequest(model=LLAMA, text="the sea"))
    assert counted.tokens == last.usage.prompt_tokens
    assert counted.context == tiny_text.CONTEXT
    counted = await llama.text.TokenCount(pb.TokenCountRequest(model=LLAMA, messages=chat.messages))
    assert counted.tokens == messages[-1].usage.prompt_tokens


async def test_an_architecture_without_converter_is_served_by_transformers_with_a_note(
    client: TextClient,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="cannot be converted") as caught:
        await client.load(MAMBA, engine="openvino")
    assert code_of(caught) is grpc.StatusCode.INVALID_ARGUMENT
    _, model = await client.load(MAMBA)
    assert model.engine == "transformers"
    assert "cannot be converted to OpenVINO" in model.note
    _, last = await client.generate(model=MAMBA, prompt="the sea", max_length=5, temperature=0)
    assert last.usage.generated_tokens == last.tokens_generated == 5
    await client.unload(MAMBA)


async def test_a_conversion_is_cancelled_with_its_only_caller(
    client: TextClient, service: TextService
) -> None:
    if LLAMA in await client.models():
        await client.unload(LLAMA)
    request = worker_pb2.LoadRequest(
        model_id=LLAMA, pipeline_type="text-generation", options={"dtype": "int8"}
    )
    call = client.worker.Load(request)
    async for response in call:
        if response.state == CONVERTING and list(service.converted.rglob(".part-*")):
            break
    call.cancel()

    def nothing_left() -> bool:
        parts = list(service.converted.rglob(".part-*"))
        return not parts and not service.children("text_svc.convert")

    await asyncio.to_thread(wait_for, "the end of the conversion", nothing_left)
    assert LLAMA not in await client.models()
    _, model = await client.load(LLAMA, dtype="int8")
    assert model.engine == "openvino"
    text, last = await client.generate(model=LLAMA, prompt="the sea", max_length=8, temperature=0)
    assert text
    assert last.done
    await client.unload(LLAMA)


async def test_usage_and_reason_come_with_the_last_message_alone(llama: TextClient) -> None:
    messages = [
        message
        async for message in llama.text.ChatCompletion(
            pb.ChatRequest(
                model=LLAMA,
                messages=[pb.ChatMessage(role="user", content="the sea")],
                temperature=0,
                max_tokens=12,
            )
        )
    ]
    assert [message.done for message in messages] == [False] * (len(messages) - 1) + [True]
    assert not any(m.finish_reason or m.HasField("usage") for m in messages[:-1])
    last = messages[-1]
    assert (last.content, last.finish_reason) == ("", "length")
    assert last.usage.generated_tokens == 12
    assert last.usage.prompt_tokens > 0
    assert 0 <= last.usage.queue_seconds <= last.usage.first_token_seconds


BAD_REQUESTS = {
    "empty prompt": ({"prompt": ""}, "INVALID_ARGUMENT", "prompt is empty"),
    "prompt over the context": (
        {"prompt": "é" * 9000},
        "INVALID_ARGUMENT",
        "limit is 4096, generated",
    ),
    "prompt over the bytes": ({"prompt": "x" * (5 << 20)}, "RESOURCE_EXHAUSTED", "limit is"),
    "NaN": ({"temperature": float("nan")}, "INVALID_ARGUMENT", "temperature is nan"),
    "negative": ({"temperature": -1.0}, "INVALID_ARGUMENT", r"must be from 0 to 100"),
    "top_p over 1": ({"top_p": 1.5}, "INVALID_ARGUMENT", r"must be from 0 to 1"),
    "top_k": ({"top_k": -3}, "INVALID_ARGUMENT", "top_k is -3"),
    "penalty": ({"repetition_penalty": 0.0}, "INVALID_ARGUMENT", "repetition_penalty is 0"),
    "length": ({"max_length": -1}, "INVALID_ARGUMENT", "max_length is -1"),
    "stops": ({"stop": ["x"] * 17}, "INVALID_ARGUMENT", "limit is 16"),
    "empty stop": ({"stop": [""]}, "INVALID_ARGUMENT", "is empty"),
    "long stop": ({"stop": ["x" * 1000]}, "RESOURCE_EXHAUSTED", "limit is 256"),
}


@pytest.mark.parametrize(("fields", "code", "said"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
async def test_a_bad_request_has_a_clear_status(
    llama: TextClient, fields: dict[str, object], code: str, said: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=said) as caught:
        await llama.generate(**({"model": LLAMA, "prompt": "the sea"} | fields))
    assert code_of(caught).name == code


@pytest.mark.parametrize(
    "prompt", ["\x00", "a\x00b", "\ufffe\uffff", "\U0010ffff", " ", "\n" * 500]
)
async def test_odd_characters_are_just_text(llama: TextClient, prompt: str) -> None:
    _, last = await llama.generate(model=LLAMA, prompt=prompt, max_length=3, temperature=0)
    assert last.done


async def test_half_of_a_surrogate_pair_is_refused(llama: TextClient) -> None:
    call = llama.channel.unary_stream("/ml.TransformersService/GenerateText")
    half = "the \ud83d".encode("utf-8", "surrogatepass")
    request = pb.TextRequest(model=LLAMA).SerializeToString() + b"\x0a" + bytes([len(half)]) + half
    with pytest.raises(grpc.aio.AioRpcError, match="cannot be decoded") as caught:
        await call(request).read()
    assert code_of(caught) is grpc.StatusCode.INVALID_ARGUMENT
    _, last = await llama.generate(model=LLAMA, prompt="the sea", max_length=3)
    assert last.done


async def test_work_ends_with_the_deadline(llama: TextClient, service: TextService) -> None:
    request = pb.TextRequest(model=LLAMA, prompt="the sea", max_length=LONG, temperature=0)
    call = llama.text.GenerateText(request, timeout=0.2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert code_of(caught) is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.to_thread(
        wait_for, "idleness", lambda: service.metric("text_running_answers", LLAMA) == 0
    )


async def test_a_thousand_cancelled_streams_leave_no_work_and_no_memory(
    llama: TextClient, service: TextService
) -> None:
    request = pb.TextRequest(model=LLAMA, prompt="the sea", max_length=LONG, temperature=0)

    async def begin_and_leave() -> None:
        call = llama.text.GenerateText(request)
        await call.read()
        call.cancel()

    def memory() -> int:
        return sum(child.memory_info().rss for child in service.children("text_svc.worker"))

    async def streams(count: int) -> int:
        for _ in range(count // 20):
            await asyncio.gather(*(begin_and_leave() for _ in range(20)))
        await asyncio.to_thread(
            wait_for, "idleness", lambda: service.metric("text_running_answers", LLAMA) == 0
        )
        return memory()

    before = await streams(200)
    after = await streams(800)
    assert after - before < 24 << 20
    assert service.metric("text_waiting_answers", LLAMA) == 0


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")


def _remote_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("import pathlib; pathlib.Path('ran').touch()")


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _missing_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _wrong_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(7)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _no_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


HOSTILE = (
    _pickle,
    _remote_code,
    _truncated,
    _missing_shard,
    _missing_tensor,
    _wrong_shape,
    _no_config,
)


@pytest.mark.parametrize("damage", HOSTILE)
async def test_a_broken_model_is_refused_and_nothing_of_it_is_loaded(
    client: TextClient, service: TextService, damage: object
) -> None:
    name = f"broken/{damage.__name__.strip('_')}"  # type: ignore[attr-defined]
    folder = service.models / name
    shutil.copytree(service.models / LLAMA, folder)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(grpc.aio.AioRpcError, match=r"\w+ \w+") as caught:
        await client.load(name)
    assert code_of(caught) is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    assert str(service.models) not in str(caught.value.details())
    assert (await client.models()).get(name) in (None, worker_pb2.MODEL_STATE_FAILED)
    assert not service.children(name)
    assert not list(service.models.parent.rglob("ran"))


async def test_serves_on_after_all_that(llama: TextClient) -> None:
    _, last = await llama.generate(model=LLAMA, prompt="the sea", max_length=3)
    assert last.done


def test_everything_of_the_module_is_idle_at_the_end(service: TextService) -> None:
    assert not service.children("text_svc.convert")
    assert psutil.pid_exists(service.process.pid)
