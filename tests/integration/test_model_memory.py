"""What a model is said to hold is what its processes hold: loaded, after work, and idle again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ml.internal import worker_pb2
from tests.support.stack import MODELS
from tests.support.text_service import TextClient, TextService, text_service
from tests.support.waiting import until

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CACHE_MB = 256
# Keys and values of 30 layers with three heads of 64 numbers, in float16 and in float32.
TOKEN_BYTES = {"openvino": 30 * 2 * 3 * 64 * 2, "transformers": 30 * 2 * 3 * 64 * 4}
WEIGHTS_BYTES = 538_060_421

pytestmark = pytest.mark.skipif(
    not (MODELS / "text" / MODEL).is_dir(), reason=f"there is no {MODEL}: run `make models`"
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextService]:
    settings = {"TEXT_GIVE_BACK_SECONDS": "3"}
    with text_service(MODELS / "text", tmp_path_factory.mktemp("service"), settings) as running:
        yield running


async def settled(service: TextService, client: TextClient) -> worker_pb2.ModelInfo:
    """What is said, once it is what the system says: a measurement is some seconds old at most."""
    said = await client.info(MODEL)

    async def true() -> bool:
        nonlocal said
        said = await client.info(MODEL)
        return abs(said.ram_bytes - service.held(MODEL)[1]) < 0.1 * said.ram_bytes

    await until(true)
    return said


@pytest.mark.parametrize("engine", ["openvino", "transformers"])
async def test_memory_of_a_real_model_is_told_as_it_is(service: TextService, engine: str) -> None:
    async with service.client() as client:
        _, model = await client.load(MODEL, engine=engine, cache_size_mb=str(CACHE_MB))
        assert model.engine == engine
        loaded = await settled(service, client)
        assert loaded.weights_bytes >= WEIGHTS_BYTES
        assert CACHE_MB - 2 <= loaded.cache_limit_bytes / (1 << 20) <= CACHE_MB
        # Only what the trial has left, which is not worth giving back.
        assert loaded.cache_bytes < 4 << 20
        assert loaded.ram_bytes < loaded.weights_bytes * 2.5

        prompt = "The sea was calm and the harbour was full of boats. " * 120
        _, last = await client.generate(model=MODEL, prompt=prompt, max_length=40, temperature=0.0)
        tokens = last.usage.prompt_tokens + last.usage.generated_tokens
        assert tokens > 1200
        await until(lambda: grown(client, tokens * TOKEN_BYTES[engine] // 2))
        used = await settled(service, client)
        taken = used.cache_bytes - loaded.cache_bytes
        assert taken == pytest.approx(tokens * TOKEN_BYTES[engine], rel=0.1, abs=4 << 20)
        assert used.ram_bytes > loaded.ram_bytes + taken // 2
        assert service.metric("text_model_cache_bytes", MODEL) == used.cache_bytes

        if engine == "transformers":  # for OpenVINO this is less than is worth to be made anew
            await until(lambda: given_back(client))
            idle = await settled(service, client)
            assert idle.ram_bytes < used.ram_bytes - taken // 2
        await client.unload(MODEL)


async def grown(client: TextClient, size: int) -> bool:
    return (await client.info(MODEL)).cache_bytes >= size


async def given_back(client: TextClient) -> bool:
    return (await client.info(MODEL)).cache_bytes == 0
