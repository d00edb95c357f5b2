"""/v1/responses."""

from __future__ import annotations

import pytest

from ml import transformers_pb2 as pb
from shared.errors import UnavailableError
from tests.unit.http.conftest import Door

PATH = "/v1/responses"


async def test_an_answer_in_one_piece(door: Door) -> None:
    answer = await door.post(
        PATH,
        {
            "model": "m",
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hi."}]},
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "Hi!"}],
                },
                {"role": "developer", "content": "Now."},
            ],
            "max_output_tokens": 9,
            "store": True,
        },
    )
    assert answer["object"] == "response"
    assert answer["status"] == "completed"
    (item,) = answer["output"]
    assert item["content"] == [
        {"type": "output_text", "text": "Hello.", "annotations": [], "logprobs": []}
    ]
    assert answer["usage"]["total_tokens"] == 10
    assert answer["store"] is False
    (request,) = door.script.requests
    assert request == pb.ChatRequest(
        model="m",
        max_tokens=9,
        messages=[
            pb.ChatMessage(role="system", content="Be brief."),
            pb.ChatMessage(role="user", content="Hi."),
            pb.ChatMessage(role="assistant", content="Hi!"),
            pb.ChatMessage(role="system", content="Now."),
        ],
    )


async def test_a_stream_has_the_events_in_order(door: Door) -> None:
    events = await door.events(PATH, {"model": "m", "input": "Hi."})
    assert [name for name, _ in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert all(name == data["type"] for name, data in events)
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert "".join(data["delta"] for name, data in events if name.endswith("delta")) == "Hello."
    assert events[-1][1]["response"]["output"][0]["content"][0]["text"] == "Hello."


async def test_an_answer_that_was_cut_is_incomplete(door: Door) -> None:
    door.script.finish = "length"
    answer = await door.post(PATH, {"model": "m", "input": "Hi."})
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    *_, (name, _) = await door.events(PATH, {"model": "m", "input": "Hi."})
    assert name == "response.incomplete"


async def test_an_error_in_the_middle_is_an_event(door: Door) -> None:
    door.script.error, door.script.fails_after = UnavailableError("it died"), 1
    *_, (name, last) = await door.events(PATH, {"model": "m", "input": "Hi."})
    assert name == "error"
    assert (last["type"], last["code"], last["message"]) == ("error", "unavailable", "it died")


async def test_penalties_and_the_form_are_passed_on(door: Door) -> None:
    form = {"type": "json_schema", "name": "a", "schema": {"const": 1}}
    fields = {"text": {"format": form}, "frequency_penalty": 0.5, "presence_penalty": -1}
    answer = await door.post(PATH, {"model": "m", "input": "Hi."} | fields)
    assert {name: answer[name] for name in fields} == fields
    request = door.script.requests[0]
    assert request.response_format == pb.ResponseFormat(json_schema='{"const": 1}')
    assert (request.frequency_penalty, request.presence_penalty) == (0.5, -1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    ],
)
async def test_what_is_not_supported_is_refused(door: Door, fields: dict, param: str) -> None:
    error = await door.refused(PATH, {"model": "m", "input": "Hi."} | fields)
    assert error["param"].startswith(param)
    assert door.script.requests == []


TOOL = {
    "type": "function",
    "name": "f",
    "description": "Adds.",
    "parameters": {"type": "object"},
    "strict": True,
}
CALLS = [
    pb.ChatResponse(reasoning="Hm."),
    pb.ChatResponse(content="So: "),
    pb.ChatResponse(tool_calls=[pb.ToolCallDelta(index=0, id="a", name="f", arguments="{")]),
    pb.ChatResponse(
        tool_calls=[
            pb.ToolCallDelta(index=0, arguments='"x":1}'),
            pb.ToolCallDelta(index=1, id="b", name="f", arguments="{}"),
        ]
    ),
    pb.ChatResponse(
        done=True, finish_reason="tool_calls", usage=pb.GenerationUsage(reasoning_tokens=2)
    ),
]


def called(identifier: str, arguments: str) -> dict:
    return {"type": "function_call", "call_id": identifier, "name": "f", "arguments": arguments}


async def test_tools_and_their_calls_and_results_are_passed_on(door: Door) -> None:
    reasoning = [{"type": "reasoning_text", "text": "Hm."}]
    conversation = {
        "input": [
            {"role": "user", "content": "Hi."},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": reasoning},
            {"role": "assistant", "content": "So:"},
            called("a", "{}"),
            called("b", "{}"),
            {"type": "function_call_output", "call_id": "a", "output": "4"},
            {
                "type": "function_call_output",
                "call_id": "b",
                "output": [{"type": "input_text", "text": "5"}],
            },
            called("c", "{}"),
            {"type": "function_call_output", "call_id": "c", "output": "6"},
        ],
        "tools": [TOOL],
    }
    fields = {"tool_choice": "auto", "parallel_tool_calls": False, "reasoning": {"effort": "low"}}
    answer = await door.post(PATH, {"model": "m"} | conversation | fields)
    assert (answer["tools"], answer["tool_choice"]) == ([TOOL], "auto")
    assert answer["parallel_tool_calls"] is False

    def calls(*names: str) -> list[pb.ToolCall]:
        return [pb.ToolCall(id=name, name="f", arguments="{}") for name in names]

    expected = pb.ChatRequest(
        model="m",
        messages=[
            pb.ChatMessage(role="user", content="Hi."),
            pb.ChatMessage(
                role="assistant", content="So:", reasoning="Hm.", tool_calls=calls("a", "b")
            ),
            pb.ChatMessage(role="tool", tool_call_id="a", content="4"),
            pb.ChatMessage(role="tool", tool_call_id="b", content="5"),
            pb.ChatMessage(role="assistant", tool_calls=calls("c")),
            pb.ChatMessage(role="tool", tool_call_id="c", content="6"),
        ],
        tools=[
            pb.Tool(name="f", description="Adds.", parameters='{"type": "object"}', strict=True)
        ],
        tool_choice="auto",
        parallel_tool_calls=False,
        separate_reasoning=True,
    )
    assert door.script.requests == [expected]
    counted = await door.post(f"{PATH}/input_tokens", {"model": "m"} | conversation)
    assert counted == {"object": "response.input_tokens", "input_tokens": 7}
    assert door.script.requests[1] == pb.TokenCountRequest(
        model="m", messages=expected.messages, tools=expected.tools
    )


async def test_which_tool_must_be_called_is_passed_on(door: Door) -> None:
    one = {"type": "function", "name": "f"}
    for choice in ("none", "required", one):
        body = {"model": "m", "input": "Hi.", "tools": [TOOL], "tool_choice": choice}
        assert (await door.post(PATH, body))["tool_choice"] == choice
    asked = [(len(r.tools), r.tool_choice, r.tool_name) for r in door.script.requests]
    assert asked == [(0, "", ""), (1, "required", ""), (1, "", "f")]


async def test_calls_of_tools_in_one_piece(door: Door) -> None:
    door.script.messages = CALLS
    answer = await door.post(PATH, {"model": "m", "input": "Hi.", "tools": [TOOL]})
    assert answer["status"] == "completed"
    assert answer["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    thought, said, *calls = answer["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert said["content"][0]["text"] == "So: "
    assert [each | {"id": "", "status": ""} for each in calls] == [
        called(name, arguments) | {"id": "", "status": ""}
        for name, arguments in (("a", '{"x":1}'), ("b", "{}"))
    ]
    assert len({each["id"] for each in answer["output"]}) == 4


async def test_a_call_that_was_cut_is_incomplete(door: Door) -> None:
    door.script.messages = [*CALLS[1:3], pb.ChatResponse(done=True, finish_reason="length")]
    answer = await door.post(PATH, {"model": "m", "input": "Hi.", "tools": [TOOL]})
    assert answer["status"] == "incomplete"
    assert [each["status"] for each in answer["output"]] == ["completed", "incomplete"]


async def test_calls_of_tools_in_a_stream(door: Door) -> None:
    door.script.messages = CALLS
    events = await door.events(PATH, {"model": "m", "input": "Hi.", "tools": [TOOL]})
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    part = [f"response.{name}" for name in ("content_part.added", "content_part.done")]
    item = [f"response.{name}" for name in ("output_item.added", "output_item.done")]
    text = [f"response.output_text.{name}" for name in ("delta", "done")]
    thought = [f"response.reasoning_text.{name}" for name in ("delta", "done")]
    call = [f"response.function_call_arguments.{name}" for name in ("delta", "done")]
    assert [name for name, _ in events][2:-1] == [
        *(item[0], part[0], *thought, part[1], item[1]),
        *(item[0], part[0], *text, part[1], item[1]),
        *(item[0], call[0], call[0], call[1], item[1]),
        *(item[0], *call, item[1]),
    ]
    _, last = events[-1]
    done = [data for name, data in events if name == item[1]]
    assert [data["item"] for data in done] == last["response"]["output"]
    assert [data["output_index"] for data in done] == [0, 1, 2, 3]
    arguments = [data["arguments"] for name, data in events if name == call[1]]
    assert arguments == ['{"x":1}', "{}"]
