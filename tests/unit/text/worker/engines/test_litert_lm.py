"""Generation with LiteRT-LM, on a real file where one is beside the repository."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import litert_lm
import pytest
import pytest_asyncio

from ml import transformers_pb2 as pb
from tests.support.optional_models import SHARED
from tests.support.text_pipeline import serve, spec_of
from text_svc.formats.litertlm import read_litertlm
from text_svc.worker.engines.litert_lm import PIECE_TOKENS, LiteRtLmEngine, LiteRtLmTokenizer
from text_svc.worker.tokenizers.fast import FastTokenizer

FILE = SHARED / "models/smollm2-135m-instruct-w4.litertlm"
FRANCE = "What is the capital of France?"
RENDERED = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    f"<|im_end|>\n<|im_start|>user\n{FRANCE}<|im_end|>\n<|im_start|>assistant\n"
)
STORY = "Write a long story about a fox."

pytestmark = [
    pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} is not here"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def text() -> AsyncIterator[Any]:
    options = {"file": FILE.name}
    spec = spec_of(FILE.parent, "chat", options, engine="litert", max_waiting=3)
    async with serve(spec) as stub:
        yield stub
    written = {each.name for each in FILE.parent.iterdir()}
    assert not any("xnnpack" in name for name in written), "nothing is written beside the model"


@pytest.fixture(scope="module")
def library() -> Iterator[litert_lm.Engine]:
    """LiteRT-LM itself."""
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    cpu = litert_lm.Backend.CPU(thread_count=2)
    with litert_lm.Engine(str(FILE), backend=cpu, cache_dir=":nocache") as engine:
        yield engine


@pytest.fixture(scope="module")
def own_tokenizer() -> FastTokenizer:
    """The tokenizer.json inside of the file, read without LiteRT-LM."""
    with tempfile.TemporaryDirectory() as folder:
        read_litertlm(FILE).unpack(Path(folder))
        return FastTokenizer(Path(folder))


def chat_request(content: str, **fields: Any) -> pb.ChatRequest:
    messages = [pb.ChatMessage(role="user", content=content)]
    return pb.ChatRequest(messages=messages, **{"temperature": 0, **fields})


async def chat(text: Any, content: str, **fields: Any) -> tuple[str, list[pb.ChatResponse]]:
    seen = [each async for each in text.ChatCompletion(chat_request(content, **fields))]
    return "".join(each.content for each in seen), seen


async def refusal(text: Any, content: str, **fields: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chat(text, content, **fields)
    return caught.value.code(), str(caught.value.details())


async def test_a_chat_is_streamed_and_equals_the_library_called_directly(
    text: Any, library: litert_lm.Engine, own_tokenizer: FastTokenizer
) -> None:
    answer, seen = await chat(text, FRANCE, max_tokens=40)
    greedy = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0)
    with library.create_session(apply_prompt_template=False, sampler_config=greedy) as session:
        session.run_prefill([RENDERED.removeprefix("<|im_start|>")])  # it adds the first itself
        expected = "".join(session.run_decode().texts)
    assert answer == expected
    assert "Paris" in answer
    assert sum(bool(each.content) for each in seen) >= 5, "a message for each token or two"
    last = seen[-1]
    assert (last.done, last.finish_reason) == (True, "stop")
    prompt = own_tokenizer.encode(RENDERED, special=False)
    assert last.usage.prompt_tokens == len(prompt)
    written = own_tokenizer.encode(answer, special=False)
    assert last.usage.generated_tokens == len(written) + 1  # and the end
    assert 0 < last.usage.queue_seconds < last.usage.first_token_seconds


async def test_the_limit_of_tokens(text: Any) -> None:
    answer, seen = await chat(text, FRANCE, max_tokens=5)
    assert answer == "The capital of France is"
    assert (seen[-1].finish_reason, seen[-1].usage.generated_tokens) == ("length", 5)


async def test_a_stop_string_ends_the_text_and_is_not_sent(text: Any) -> None:
    answer, seen = await chat(text, FRANCE, stop=["ance is"])
    assert answer == "The capital of Fr"
    assert seen[-1].finish_reason == "stop"


async def test_a_seed_repeats_a_text(text: Any) -> None:
    sampled = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 12}
    texts = [(await chat(text, STORY, seed=seed, **sampled))[0] for seed in (1, 1, 2**63)]
    assert texts[0] == texts[1] != texts[2]


async def test_a_prompt_is_continued(text: Any, own_tokenizer: FastTokenizer) -> None:
    request = pb.TextRequest(prompt="The capital of France is", max_length=8, temperature=0)
    seen = [each async for each in text.GenerateText(request)]
    assert "".join(each.text for each in seen).startswith(" ")
    # The file's start token comes before each prompt, as the library has it.
    counted = len(own_tokenizer.encode(request.prompt, special=False)) + 1
    assert seen[-1].usage.prompt_tokens == counted


async def test_what_it_cannot_do_is_refused(text: Any) -> None:
    code, message = await refusal(text, FRANCE, repetition_penalty=1.5)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "repetition_penalty is 1.5; the engine of this model has none" in message
    code, message = await refusal(text, FRANCE, logprobs=True)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "logprobs cannot be used with this model" in message
    code, message = await refusal(text, "fox " * 3000)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(r"the prompt has \d+ tokens; the model's limit is 2048", message)
    picture = pb.ChatMessage(role="user", content="?", images=[pb.ImageData(data=b"x")])
    with pytest.raises(grpc.aio.AioRpcError, match="takes only text"):
        async for _ in text.ChatCompletion(pb.ChatRequest(messages=[picture])):
            pass


async def test_one_runs_and_the_rest_wait_for_their_turn(text: Any) -> None:
    calls = [chat(text, FRANCE, max_tokens=12) for _ in range(3)]
    answers = await asyncio.gather(*calls)
    assert len({answer for answer, _ in answers}) == 1
    waited = sorted(seen[-1].usage.queue_seconds for _, seen in answers)
    first_token = min(seen[-1].usage.first_token_seconds for _, seen in answers)
    assert waited[0] < first_token < waited[1] < waited[2]


async def test_a_cancelled_call_stops_within_a_token(text: Any) -> None:
    call = text.ChatCompletion(chat_request(STORY, max_tokens=1500))
    for _ in range(3):
        await call.read()
    call.cancel()
    answer, seen = await chat(text, FRANCE, max_tokens=2)
    assert answer == "The capital"
    assert seen[-1].usage.queue_seconds < 2, "1,500 tokens take half a minute"


async def test_long_prompts_are_read_in_pieces_of_the_same_tokens(
    library: litert_lm.Engine,
) -> None:
    tokenizer = LiteRtLmTokenizer(library, FILE.parent)
    assert tokenizer.has_token("<|im_end|>")
    assert not tokenizer.has_token("<think>")
    engine = LiteRtLmEngine.__new__(LiteRtLmEngine)
    engine._tokenizer = tokenizer
    for prompt in ("<|im_start|>user\nThe 雪 fox,\n\n  it's 1,000 km away. " * 120, "abc" * 3000):
        ids = tokenizer.encode(prompt, special=False)
        pieces = list(engine._pieces(prompt, ids))
        assert "".join(pieces) == tokenizer.without_start(prompt)
        assert [token for each in pieces for token in tokenizer.plain(each)] == ids[1:]
        sizes = [len(tokenizer.plain(each)) for each in pieces]
        assert max(sizes) < 1.2 * PIECE_TOKENS or len(pieces) == 1


async def test_pieces_of_a_prompt_give_the_same_answer(library: litert_lm.Engine) -> None:
    words = [f"Fact {n}: the number of box {n} is {n * 7 % 10}." for n in range(30)]
    parts = ["user\n" + " ".join(words[:15]), " " + " ".join(words[15:])]
    parts[1] += "\nWhat is the number of box 3?<|im_end|>\n<|im_start|>assistant\n"
    answers = []
    greedy = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0)
    for given in (parts, ["".join(parts)]):
        with library.create_session(
            apply_prompt_template=False, sampler_config=greedy, max_output_tokens=12
        ) as session:
            for part in given:
                session.run_prefill([part])
            answers.append("".join(session.run_decode().texts))
    assert answers[0] == answers[1]
