"""text_svc on a CUDA device: answers are those of transformers on the CPU, memory is what the
driver says, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from ml import transformers_pb2 as pb
from tests.cuda.conftest import LLAMA
from tests.cuda.device import MIB, device_memory
from tests.support.stack import wait_for
from tests.support.text_service import TextClient, TextService

PROMPTS = [f"{number} the sea and the sky, " * (1 + number) for number in range(8)]
EXACT = {"dtype": "float32", "engine": "transformers"}


@pytest.fixture
async def client(service: TextService) -> AsyncIterator[TextClient]:
    async with service.client() as connected:
        yield connected
        for model in await connected.models():
            await connected.unload(model)


async def test_greedy_answers_of_many_callers_are_those_of_transformers(
    client: TextClient, models: Path, device: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, model = await client.load(LLAMA, device=device, **EXACT)
    assert model.engine == "transformers"
    calls = (
        client.generate(model=LLAMA, prompt=prompt, max_length=24, temperature=0.0)
        for prompt in PROMPTS
    )
    answers = [text for text, _ in await asyncio.gather(*calls)]
    tokenizer = AutoTokenizer.from_pretrained(models / LLAMA)
    reference: Any = AutoModelForCausalLM.from_pretrained(models / LLAMA, dtype=torch.float32)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        full = reference.generate(ids, max_new_tokens=24, do_sample=False)[0]
        assert answer == tokenizer.decode(full[ids.shape[1] :], skip_special_tokens=True)


async def test_a_seed_gives_the_same_answer_again(client: TextClient, device: str) -> None:
    await client.load(LLAMA, device=device, **EXACT)
    wanted = {"model": LLAMA, "prompt": "the sea", "max_length": 24, "temperature": 1.2, "seed": 7}
    answers = {(await client.generate(**wanted))[0] for _ in range(3)}
    assert len(answers) == 1


async def test_vectors_are_those_of_the_cpu(client: TextClient, device: str) -> None:
    found = []
    for place in ("cpu", device):
        await client.load("tiny/bert", "feature-extraction", device=place, **EXACT)
        request = pb.GenerateEmbeddingsRequest(model="tiny/bert", texts=PROMPTS)
        answer = await client.text.GenerateEmbeddings(request)
        found.append(np.array([each.values for each in answer.embeddings]))
        await client.unload("tiny/bert")
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


@pytest.mark.parametrize(
    ("model", "pipeline", "asked"),
    [
        ("tiny/bert-ner", "token-classification", {"text": "Jane Doe lives in Paris."}),
        (
            "tiny/bert-rank",
            "reranking",
            {"ranking": pb.Ranking(query="the sea", documents=["a ship", "the sea and the sky"])},
        ),
        ("tiny/t5", "text2text-generation", {"text": "the sea and the sky"}),
    ],
)
async def test_pipelines_answer_as_on_the_cpu(
    client: TextClient, device: str, model: str, pipeline: str, asked: dict[str, Any]
) -> None:
    answers = []
    for place in ("cpu", device):
        await client.load(model, pipeline, device=place, dtype="float32")
        answers.append(await client.text.Infer(pb.InferRequest(model=model, **asked)))
        await client.unload(model)
    on_cpu, on_device = map(numbers, answers)
    assert on_cpu[0] == on_device[0]
    np.testing.assert_allclose(on_cpu[1], on_device[1], atol=1e-4)


def numbers(answer: Any) -> tuple[list[str], list[float]]:
    """The texts and the numbers of a message, in their order."""
    texts: list[str] = []
    values: list[float] = []

    def walk(value: Any) -> None:
        if hasattr(value, "ListFields"):
            for _, inner in value.ListFields():
                walk(inner)
        elif isinstance(value, (str, bytes)):
            texts.append(str(value))
        elif isinstance(value, (int, float)):
            values.append(float(value))
        else:
            for inner in value:
                walk(inner)

    walk(answer)
    return texts, values


@pytest.mark.usefixtures("on_cuda")
async def test_memory_is_what_the_driver_says_and_comes_back(
    client: TextClient, service: TextService, device: str
) -> None:
    before = device_memory()
    _, model = await client.load(LLAMA, device=device, cache_size_mb="256", **EXACT)
    new = {pid: held for pid, held in device_memory().items() if pid not in before}
    assert model.vram_bytes >= model.cache_limit_bytes > 0
    # The driver also counts the context: programs and their workspaces.
    assert model.vram_bytes <= sum(new.values()) <= model.vram_bytes + 1024 * MIB
    await client.unload(LLAMA)
    assert not device_memory().keys() & new.keys()
    await asyncio.to_thread(wait_for, "no reserved memory", lambda: reserved(service) == 0)


def reserved(service: TextService) -> float:
    """Bytes of the first device that models have reserved."""
    return service.sample("text_memory_reserved_bytes", device="cuda:0")


@pytest.mark.usefixtures("on_cuda")
async def test_a_model_over_the_budget_of_the_device_is_refused(
    text_service_with: Callable[..., AbstractContextManager[TextService]], device: str
) -> None:
    with text_service_with(TEXT_CUDA_MEMORY_BUDGET_MB="1100") as service:
        async with service.client() as client:
            await client.load(LLAMA, device=device, cache_size_mb="16", **EXACT)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.load("tiny/bert", "feature-extraction", device=device, **EXACT)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "cuda:0" in str(caught.value.details())
    assert "TEXT_CUDA_MEMORY_BUDGET_MB" in str(caught.value.details())
