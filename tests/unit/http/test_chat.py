"""/v1/chat/completions."""

from __future__ import annotations

import base64

import pytest

from http_svc.openai.chat import MAX_LOGPROBS
from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, ModelNotLoadedError, QueueFullError
from tests.unit.http.conftest import Door

PATH = "/v1/chat/completions"
HELLO = {"model": "org/tiny", "messages": [{"role": "user", "content": "Say hello."}]}


async def test_an_answer_in_one_piece(door: Door) -> None:
    answer = await door.post(PATH, HELLO)
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "org/tiny"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hello.",
                "refusal": None,
                "annotations": [],
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


async def test_a_stream_begins_with_the_role_and_ends_with_done(door: Door) -> None:
    door.script.pieces, door.script.finish = ["Ünï", '"\n'], "length"
    *chunks, (_, done) = await door.events(PATH, HELLO)
    assert done == "[DONE]"
    assert len({chunk["id"] for _, chunk in chunks}) == 1
    assert {chunk["object"] for _, chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for _, chunk in chunks)
    choices = [chunk["choices"][0] for _, chunk in chunks]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Ünï"},
        {"content": '"\n'},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]


async def test_usage_is_a_chunk_of_its_own_if_it_is_asked_for(door: Door) -> None:
    body = HELLO | {"stream_options": {"include_usage": True}}
    *chunks, (_, last), (_, done) = await door.events(PATH, body)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert all(chunk["usage"] is None for _, chunk in chunks)


async def test_parameters_reach_the_model(door: Door) -> None:
    picture = base64.b64encode(b"a picture").decode()
    sound = base64.b64encode(b"a sound").decode()
    parts = [
        {"type": "text", "text": "What"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
        {"type": "text", "text": "is it?"},
    ]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "somebody"},
    ]
    await door.post(
        PATH,
        {
            "model": "m",
            "messages": messages,
            "temperature": 0,
            "top_p": 0.5,
            "top_k": -1,
            "seed": -1,
            "stop": "END",
            "max_tokens": 5,
            "max_completion_tokens": 6,
            "n": 1,
            "frequency_penalty": 0,
            "logprobs": False,
            "tools": [],
            "response_format": {"type": "text"},
            "user": "ignored",
            "something new": {"is": "ignored"},
        },
    )
    assert door.script.requests == [
        pb.ChatRequest(
            model="m",
            messages=[
                pb.ChatMessage(role="system", content="Be brief."),
                pb.ChatMessage(
                    role="user",
                    content="What\nis it?",
                    images=[pb.ImageData(data=b"a picture")],
                    audio=[pb.AudioData(data=b"a sound")],
                ),
            ],
            temperature=0,
            top_p=0.5,
            top_k=0,
            seed=2**64 - 1,
            stop=["END"],
            max_tokens=6,
        )
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"n": 0}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"presence_penalty": "much"}, "presence_penalty"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "zip"}]}]}, "messages[0].content[0]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": "warm"}, "temperature"),
    ],
)
async def test_what_is_not_supported_is_refused(door: Door, fields: dict, param: str) -> None:
    error = await door.refused(PATH, HELLO | fields)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert door.script.requests == []


async def test_penalties_and_biases_are_passed_on(door: Door) -> None:
    fields = {"frequency_penalty": 0.5, "presence_penalty": -1.0, "min_p": 0.25}
    await door.post(PATH, HELLO | fields | {"logit_bias": {"5": 1.5}})
    request = door.script.requests[0]
    assert {name: getattr(request, name) for name in fields} == fields
    assert dict(request.logit_bias) == {5: 1.5}
    for token in ("-1", "x", str(2**31)):
        await door.refused(PATH, HELLO | {"logit_bias": {token: 1}})


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"type": "json_object"}, pb.ResponseFormat(json_object=True)),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": "\u00e9"}}},
            pb.ResponseFormat(json_schema='{"const": "\u00e9"}'),
        ),
    ],
)
async def test_the_form_of_an_answer_is_passed_on(
    door: Door, form: dict, expected: pb.ResponseFormat
) -> None:
    await door.post(PATH, HELLO | {"response_format": form})
    assert door.script.requests[0].response_format == expected


F = {"name": "f", "description": "Adds.", "parameters": {"type": "object"}}
TOOLS = {"tools": [{"type": "function", "function": F | {"strict": False}}]}
CALLS = [
    pb.ChatResponse(content="So: "),
    pb.ChatResponse(tool_calls=[pb.ToolCallDelta(index=0, id="a", name="f", arguments="{")]),
    pb.ChatResponse(
        tool_calls=[
            pb.ToolCallDelta(index=0, arguments='"x":1}'),
            pb.ToolCallDelta(index=1, id="b", name="f", arguments="{}"),
        ]
    ),
    pb.ChatResponse(done=True, finish_reason="tool_calls"),
]


def call(identifier: str, arguments: str) -> dict:
    function = {"name": "f", "arguments": arguments}
    return {"id": identifier, "type": "function", "function": function}


async def test_tools_and_their_calls_and_results_are_passed_on(door: Door) -> None:
    messages = [
        *HELLO["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call("a", "{}")]},
        {"role": "tool", "tool_call_id": "a", "content": "4"},
    ]
    fields = {"messages": messages, "tool_choice": "auto", "parallel_tool_calls": False}
    await door.post(PATH, HELLO | TOOLS | fields)
    assert door.script.requests == [
        pb.ChatRequest(
            model="org/tiny",
            messages=[
                pb.ChatMessage(role="user", content="Say hello."),
                pb.ChatMessage(
                    role="assistant", tool_calls=[pb.ToolCall(id="a", name="f", arguments="{}")]
                ),
                pb.ChatMessage(role="tool", tool_call_id="a", content="4"),
            ],
            tools=[pb.Tool(name="f", description="Adds.", parameters='{"type": "object"}')],
            tool_choice="auto",
            parallel_tool_calls=False,
        )
    ]


async def test_a_strict_tool_is_passed_on(door: Door) -> None:
    tool = {"type": "function", "function": {"name": "f", "strict": True}}
    await door.post(PATH, HELLO | {"tools": [tool]})
    assert list(door.script.requests[0].tools) == [pb.Tool(name="f", strict=True)]


async def test_reasoning_is_apart_where_it_is_asked_for(door: Door) -> None:
    door.script.messages = [
        pb.ChatResponse(reasoning="Hm, "),
        pb.ChatResponse(reasoning="4."),
        pb.ChatResponse(content="Four."),
        pb.ChatResponse(done=True, finish_reason="stop"),
    ]
    earlier = {"role": "assistant", "content": "Five.", "reasoning_content": "Hm."}
    body = {"model": "m", "messages": [earlier], "separate_reasoning": True, "think": False}
    (choice,) = (await door.post(PATH, body))["choices"]
    assert choice["message"]["reasoning_content"] == "Hm, 4."
    assert choice["message"]["content"] == "Four."
    *chunks, _ = await door.events(PATH, body)
    deltas = [chunk["choices"][0]["delta"] for _, chunk in chunks]
    assert deltas[1:-1] == [
        {"reasoning_content": "Hm, "},
        {"reasoning_content": "4."},
        {"content": "Four."},
    ]
    request = door.script.requests[0]
    assert (request.separate_reasoning, request.think) == (True, False)
    assert request.messages[0].reasoning == "Hm."


async def test_which_tool_must_be_called_is_passed_on(door: Door) -> None:
    one = {"type": "function", "function": {"name": "f"}}
    for choice in ("none", "required", one):
        await door.post(PATH, HELLO | TOOLS | {"tool_choice": choice})
    asked = [(len(r.tools), r.tool_choice, r.tool_name) for r in door.script.requests]
    assert asked == [(0, "", ""), (1, "required", ""), (1, "", "f")]


async def test_calls_of_tools_in_one_piece(door: Door) -> None:
    door.script.messages = CALLS
    (choice,) = (await door.post(PATH, HELLO | TOOLS))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "So: "
    assert choice["message"]["tool_calls"] == [call("a", '{"x":1}'), call("b", "{}")]
    door.script.messages = CALLS[1:]
    (choice,) = (await door.post(PATH, HELLO | TOOLS))["choices"]
    assert choice["message"]["content"] is None


async def test_calls_of_tools_in_a_stream(door: Door) -> None:
    door.script.messages = CALLS
    *chunks, (_, done) = await door.events(PATH, HELLO | TOOLS)
    assert done == "[DONE]"
    choices = [chunk["choices"][0] for _, chunk in chunks]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "So: "},
        {"tool_calls": [{"index": 0} | call("a", "{")]},
        {
            "tool_calls": [
                {"index": 0, "function": {"arguments": '"x":1}'}},
                {"index": 1} | call("b", "{}"),
            ]
        },
        {},
    ]
    assert choices[-1]["finish_reason"] == "tool_calls"


async def test_several_answers(door: Door) -> None:
    door.script.messages = [
        pb.ChatResponse(index=1, content="B"),
        pb.ChatResponse(index=0, content="A"),
        pb.ChatResponse(index=1, content="b", finish_reason="length"),
        pb.ChatResponse(
            index=0, done=True, finish_reason="stop", usage=pb.GenerationUsage(generated_tokens=3)
        ),
    ]
    answer = await door.post(PATH, HELLO | {"n": 2})
    assert door.script.requests[0].n == 2
    found = [(c["index"], c["message"]["content"], c["finish_reason"]) for c in answer["choices"]]
    assert found == [(0, "A", "stop"), (1, "Bb", "length")]
    assert answer["usage"]["completion_tokens"] == 3
    *chunks, (_, done) = await door.events(PATH, HELLO | {"n": 2})
    assert done == "[DONE]"
    choices = [chunk["choices"][0] for _, chunk in chunks]
    assert [(c["index"], c["delta"].get("content"), c["finish_reason"]) for c in choices] == [
        (1, "", None),
        (1, "B", None),
        (0, "", None),
        (0, "A", None),
        (1, "b", None),
        (1, None, "length"),
        (0, None, "stop"),
    ]


async def test_log_probabilities_of_tokens(door: Door) -> None:
    other = pb.TokenLogprob(token_id=2, text="\ufffd", utf8=b"\xc3", logprob=float("-inf"))
    first = pb.TokenLogprob(token_id=1, text="A", utf8=b"A", logprob=-0.5, top=[other])
    end = pb.TokenLogprob(token_id=0, text="</s>", logprob=-1)
    door.script.messages = [
        pb.ChatResponse(content="A", logprobs=[first]),
        pb.ChatResponse(logprobs=[end], done=True, finish_reason="stop"),
    ]
    expected = [
        {
            "token": "A",
            "logprob": -0.5,
            "bytes": [65],
            "top_logprobs": [{"token": "\ufffd", "logprob": -9999.0, "bytes": [195]}],
        },
        {"token": "</s>", "logprob": -1.0, "bytes": None, "top_logprobs": []},
    ]
    fields = {"logprobs": True, "top_logprobs": 1}
    answer = await door.post(PATH, HELLO | fields)
    assert answer["choices"][0]["logprobs"] == {"content": expected, "refusal": None}
    request = door.script.requests[0]
    assert (request.logprobs, request.top_logprobs) == (True, 1)
    chunks = (await door.events(PATH, HELLO | fields))[:-1]
    logs = [chunk["choices"][0]["logprobs"] for _, chunk in chunks]
    assert [token for log in logs if log for token in log["content"]] == expected


@pytest.mark.parametrize(("messages", "status"), [(4, 200), (21, 400)])
async def test_log_probabilities_of_an_answer_in_one_piece_have_a_limit(
    door: Door, messages: int, status: int
) -> None:
    other = pb.TokenLogprob(text="b", utf8=b"b", logprob=-1)
    token = pb.TokenLogprob(text="a", utf8=b"a", logprob=-1, top=[other] * 19)
    few = pb.ChatResponse(logprobs=[token] * (MAX_LOGPROBS // 400))
    done = pb.ChatResponse(done=True, finish_reason="stop")
    door.script.messages = [*[few] * messages, done]
    answer = await door.post(PATH, HELLO | {"logprobs": True, "top_logprobs": 19}, status)
    if status == 200:
        assert len(answer["choices"][0]["logprobs"]["content"]) == MAX_LOGPROBS // 100
    else:
        assert answer["error"]["param"] == "logprobs"
        assert f"{MAX_LOGPROBS} log-probabilities" in answer["error"]["message"]


async def test_a_model_may_have_any_name(door: Door) -> None:
    for path, body in ((PATH, HELLO), ("/v1/completions", {"prompt": "Hi."})):
        (_, first), *_ = await door.events(path, body | {"model": "\ufffc"})
        assert first["model"] == "\ufffc"


@pytest.mark.parametrize("url", ["https://example.com/a.png", "file:///etc/passwd", "data:,x", "x"])
async def test_no_address_is_fetched(door: Door, url: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    error = await door.refused(PATH, HELLO | {"messages": [{"role": "user", "content": parts}]})
    assert "must be a data URL" in error["message"]


async def test_a_model_that_is_not_loaded_is_not_found(door: Door) -> None:
    door.script.error = ModelNotLoadedError("the model 'x' is not loaded")
    for body in (HELLO, HELLO | {"stream": True}):
        error = await door.refused(PATH, body, 404)
        assert error == {
            "message": "the model 'x' is not loaded",
            "type": "invalid_request_error",
            "param": None,
            "code": "model_not_found",
        }


async def test_a_full_queue_says_when_to_come_again(door: Door) -> None:
    door.script.error = QueueFullError("64 generations wait", retry_after=2.5)
    answer = await door.client.post(PATH, json=HELLO | {"stream": True})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.json()["error"]["type"] == "rate_limit_error"


async def test_an_error_in_the_middle_of_a_stream_is_an_event(door: Door) -> None:
    door.script.error, door.script.fails_after = InvalidArgumentError("it broke"), 1
    *_, (_, last) = await door.events(PATH, HELLO)
    assert last == {
        "error": {
            "message": "it broke",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_argument",
        }
    }


async def test_the_caller_that_envoy_names_is_passed_on(door: Door) -> None:
    await door.post(PATH, HELLO, **{"x-ml-caller": "somebody"})
    assert door.script.callers == ["somebody"]
