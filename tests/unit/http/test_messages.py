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
        {"tools": [{"name": "f"}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tool_choice": {"type": "tool"}},
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


TOOL = {"name": "f", "description": "Adds.", "input_schema": {"type": "object"}}
CALLS = [
    pb.ChatResponse(reasoning="Hm."),
    pb.ChatResponse(content="So: "),
    pb.ChatResponse(tool_calls=[pb.ToolCallDelta(index=0, id="a", name="f", arguments="{")]),
    pb.ChatResponse(
        tool_calls=[
            pb.ToolCallDelta(index=0, arguments='"x":1}'),
            pb.ToolCallDelta(index=1, id="b", name="f"),
        ]
    ),
    pb.ChatResponse(done=True, finish_reason="tool_calls"),
]


def use(identifier: str, value: dict) -> dict:
    direct = {"type": "direct"}
    return {"type": "tool_use", "id": identifier, "name": "f", "input": value, "caller": direct}


async def test_tools_and_their_calls_and_results_are_passed_on(door: Door) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(b"p").decode()}
    messages = [
        *HELLO["messages"],
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "So:"},
                {"type": "tool_use", "id": "a", "name": "f", "input": {"x": "é"}},
                {"type": "tool_use", "id": "b", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": "4"},
                {
                    "type": "tool_result",
                    "tool_use_id": "b",
                    "content": [{"type": "text", "text": "5"}, {"type": "image", "source": source}],
                    "is_error": False,
                },
                {"type": "text", "text": "Well?"},
            ],
        },
    ]
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    fields = {"messages": messages, "tools": [TOOL], "tool_choice": choice}
    await door.post(PATH, HELLO | fields | {"thinking": {"type": "adaptive"}})
    expected = pb.ChatRequest(
        model="m",
        max_tokens=5,
        messages=[
            pb.ChatMessage(role="user", content="Hi."),
            pb.ChatMessage(
                role="assistant",
                content="So:",
                reasoning="Hm.",
                tool_calls=[
                    pb.ToolCall(id="a", name="f", arguments='{"x": "é"}'),
                    pb.ToolCall(id="b", name="f", arguments="{}"),
                ],
            ),
            pb.ChatMessage(role="tool", tool_call_id="a", content="4"),
            pb.ChatMessage(
                role="tool", tool_call_id="b", content="5", images=[pb.ImageData(data=b"p")]
            ),
            pb.ChatMessage(role="user", content="Well?"),
        ],
        tools=[pb.Tool(name="f", description="Adds.", parameters='{"type": "object"}')],
        tool_choice="auto",
        parallel_tool_calls=False,
        separate_reasoning=True,
    )
    assert door.script.requests == [expected]
    counted = await door.post(f"{PATH}/count_tokens", {"model": "m"} | fields)
    assert counted == {"input_tokens": 7}
    assert door.script.requests[1] == pb.TokenCountRequest(
        model="m", messages=expected.messages, tools=expected.tools
    )


async def test_which_tool_must_be_called_is_passed_on(door: Door) -> None:
    strict = {"tools": [TOOL | {"strict": True}]}
    for choice in ({"type": "none"}, {"type": "any"}, {"type": "tool", "name": "f"}):
        await door.post(PATH, HELLO | strict | {"tool_choice": choice})
    asked = [(len(r.tools), r.tool_choice, r.tool_name) for r in door.script.requests]
    assert asked == [(0, "", ""), (1, "required", ""), (1, "", "f")]
    assert door.script.requests[1].tools[0].strict


async def test_calls_of_tools_in_one_piece(door: Door) -> None:
    door.script.messages = CALLS
    thinking = {"type": "enabled", "budget_tokens": 2048}
    answer = await door.post(PATH, HELLO | {"tools": [TOOL], "thinking": thinking})
    assert answer["stop_reason"] == "tool_use"
    assert answer["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "So: ", "citations": None},
        use("a", {"x": 1}),
        use("b", {}),
    ]
    (request,) = door.script.requests
    assert (request.separate_reasoning, request.think) == (True, True)


async def test_a_call_that_was_cut_is_none(door: Door) -> None:
    door.script.messages = [*CALLS[1:3], pb.ChatResponse(done=True, finish_reason="length")]
    answer = await door.post(PATH, HELLO | {"tools": [TOOL]})
    assert answer["stop_reason"] == "max_tokens"
    assert [block["type"] for block in answer["content"]] == ["text"]


async def test_calls_of_tools_in_a_stream(door: Door) -> None:
    door.script.messages = CALLS
    events = await door.events(PATH, HELLO | {"tools": [TOOL]})
    blocks: list[dict] = []
    for name, data in events[1:-2]:
        assert data["index"] == len(blocks) - (name != "content_block_start")
        if name == "content_block_start":
            blocks.append(data["content_block"] | {"deltas": []})
        elif name == "content_block_delta":
            blocks[-1]["deltas"].append(data["delta"])
    assert [name for name, _ in events].count("content_block_stop") == len(blocks) == 4
    kinds = ["thinking_delta", "text_delta", "input_json_delta"]
    assert [block.pop("deltas") for block in blocks] == [
        [{"type": kinds[0], "thinking": "Hm."}],
        [{"type": kinds[1], "text": "So: "}],
        [{"type": kinds[2], "partial_json": "{"}, {"type": kinds[2], "partial_json": '"x":1}'}],
        [],
    ]
    assert blocks[2:] == [use("a", {}), use("b", {})]
    assert events[-2][1]["delta"]["stop_reason"] == "tool_use"
