"""/v1/messages, as clients of Anthropic expect it."""

from __future__ import annotations

import base64

import pytest

from ml import transformers_pb2 as pb
from shared.errors import ModelNotLoadedError, UnavailableError
from tests.unit.http.conftest import Door

PATH = "/v1/messages"
HELLO = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi."}]}


async def test_an_answer_in_one_piece(door: Door) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(b"p").decode()}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What?"}]
    answer = await door.post(
        PATH,
        HELLO
        | {
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [{"role": "user", "content": content}],
            "stop_sequences": ["END"],
            "temperature": 0,
            "top_k": 3,
        },
    )
    assert answer["id"].startswith("msg_")
    assert (answer["type"], answer["role"]) == ("message", "assistant")
    assert answer["content"] == [{"type": "text", "text": "Hello.", "citations": None}]
    assert answer["stop_reason"] == "end_turn"
    assert answer["usage"]["output_tokens"] == 3
    assert door.script.requests == [
        pb.ChatRequest(
            model="m",
            max_tokens=5,
            stop=["END"],
            temperature=0,
            top_k=3,
            messages=[
                pb.ChatMessage(role="system", content="Be brief."),
                pb.ChatMessage(role="user", content="What?", images=[pb.ImageData(data=b"p")]),
            ],
        )
    ]


async def test_a_stream_has_the_events_in_order(door: Door) -> None:
    door.script.finish = "length"
    events = await door.events(PATH, HELLO)
    assert [name for name, _ in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert all(name == data["type"] for name, data in events)
    deltas = [data["delta"]["text"] for name, data in events if name == "content_block_delta"]
    assert "".join(deltas) == "Hello."
    assert events[-2][1]["delta"]["stop_reason"] == "max_tokens"
    assert events[-2][1]["usage"]["output_tokens"] == 3


async def test_errors_are_as_anthropic_writes_them(door: Door) -> None:
    door.script.error = ModelNotLoadedError("the model 'm' is not loaded")
    assert await door.post(PATH, HELLO, 404) == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "the model 'm' is not loaded"},
    }
    door.script.error, door.script.fails_after = UnavailableError("it died"), 1
    *_, last = await door.events(PATH, HELLO)
    assert last == (
        "error",
        {"type": "error", "error": {"type": "overloaded_error", "message": "it died"}},
    )


async def test_the_form_of_an_answer_is_passed_on(door: Door) -> None:
    form = {"type": "json_schema", "schema": {"const": 1}}
    await door.post(PATH, HELLO | {"output_config": {"effort": "low", "format": form}})
    request = door.script.requests[0]
    assert request.response_format == pb.ResponseFormat(json_schema='{"const": 1}')


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"name": "f", "input_schema": {}}]},
        {"thinking": {"type": "enabled", "budget_tokens": 2048}},
        {"mcp_servers": [{"type": "url", "url": "https://example.com", "name": "x"}]},
        {"output_format": {"type": "json_schema", "schema": {}}},
        {"output_config": {"format": {"type": "json_schema"}}},
        {"max_tokens": None},
        {"messages": []},
    ],
)
async def test_what_is_not_supported_is_refused(door: Door, fields: dict) -> None:
    answer = await door.post(PATH, HELLO | fields, 400)
    assert answer["error"]["type"] == "invalid_request_error"
    assert door.script.requests == []
