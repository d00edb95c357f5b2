"""/v1/completions."""

from __future__ import annotations

import pytest

from ml import transformers_pb2 as pb
from shared.errors import ModelNotLoadedError
from tests.unit.http.conftest import Door

PATH = "/v1/completions"


async def test_an_answer_for_each_prompt(door: Door) -> None:
    answer = await door.post(
        PATH, {"model": "m", "prompt": ["One", "Two"], "max_tokens": 4, "echo": True}
    )
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert [(each["index"], each["text"]) for each in answer["choices"]] == [
        (0, "OneHello."),
        (1, "TwoHello."),
    ]
    assert answer["usage"] == {"prompt_tokens": 14, "completion_tokens": 6, "total_tokens": 20}
    requests = sorted(door.script.requests, key=lambda request: request.prompt)
    assert requests == [
        pb.TextRequest(model="m", prompt=prompt, max_length=4) for prompt in ("One", "Two")
    ]


async def test_a_stream_of_two_prompts(door: Door) -> None:
    body = {"model": "m", "prompt": ["One", "Two"], "stream_options": {"include_usage": True}}
    *chunks, (_, last), (_, done) = await door.events(PATH, body)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 6
    for index in (0, 1):
        choices = [c["choices"][0] for _, c in chunks if c["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in choices) == "Hello."
        assert [choice["finish_reason"] for choice in choices][-1] == "stop"


async def test_without_a_length_it_is_openais(door: Door) -> None:
    await door.post(PATH, {"model": "m", "prompt": "One"})
    assert door.script.requests[0].max_length == 16


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_of_one_prompt_is_that_of_all(door: Door, stream: bool) -> None:
    door.script.error = ModelNotLoadedError("the model 'm' is not loaded")
    body = {"model": "m", "prompt": ["One", "Two"], "stream": stream}
    error = await door.refused(PATH, body, 404)
    assert error["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ["x"] * 129}, "prompt"),
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 0}, "logprobs"),
    ],
)
async def test_what_is_not_supported_is_refused(door: Door, fields: dict, param: str) -> None:
    error = await door.refused(PATH, {"model": "m", "prompt": "x"} | fields)
    assert error["param"] == param
