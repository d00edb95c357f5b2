"""Tools with OpenAI's own client, in its strict mode."""

from __future__ import annotations

import os
import sys

import openai

(CHAT,) = sys.argv[1:]
HELLO = [{"role": "user", "content": "Say hello."}]
ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
TOOL = ADD | {"type": "function", "strict": True}
client = openai.OpenAI(
    base_url=os.environ["OPENAI_BASE_URL"],
    api_key="none",
    max_retries=0,
    _strict_response_validation=True,
)


def chats() -> None:
    nested = {"type": "function", "function": ADD}
    asked = {"model": CHAT, "messages": HELLO, "tools": [nested]}
    message = client.chat.completions.create(**asked).choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "add"
    with client.chat.completions.stream(**asked) as stream:
        assert stream.get_final_completion().choices[0].message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "4"}
    answer = client.chat.completions.create(model=CHAT, messages=[*HELLO, message, result])
    assert answer.choices[0].message.content


def responds() -> None:
    asked = {"model": CHAT, "input": HELLO, "tools": [TOOL]}
    (call,) = client.responses.create(**asked, tool_choice="required").output
    assert (call.type, call.name) == ("function_call", "add")
    with client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output[0].name == "add"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "4"}
    assert client.responses.create(model=CHAT, input=[*HELLO, call, result]).output_text
    assert client.responses.input_tokens.count(model=CHAT, input="Hi.").input_tokens


for each in (chats, responds):
    each()
    print("passed", each.__name__)
