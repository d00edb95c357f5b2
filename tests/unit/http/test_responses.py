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
    ],
)
async def test_what_is_not_supported_is_refused(door: Door, fields: dict, param: str) -> None:
    error = await door.refused(PATH, {"model": "m", "input": "Hi."} | fields)
    assert error["param"].startswith(param)
    assert door.script.requests == []
