"""Anthropic's own client, in its strict mode."""

from __future__ import annotations

import os
import sys

import anthropic
import pytest

(CHAT,) = sys.argv[1:]
HELLO = [{"role": "user", "content": "Say hello."}]
client = anthropic.Anthropic(
    base_url=os.environ["ANTHROPIC_BASE_URL"],
    api_key="none",
    max_retries=0,
    _strict_response_validation=True,
)
answer = client.messages.create(model=CHAT, max_tokens=8, messages=HELLO, system="Be brief.")
assert answer.content[0].text
assert answer.stop_reason in ("end_turn", "max_tokens")
with client.messages.stream(model=CHAT, max_tokens=8, messages=HELLO) as stream:
    assert "".join(stream.text_stream)
    assert stream.get_final_message().usage.output_tokens
tool = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}
asked = {"model": CHAT, "max_tokens": 8, "messages": HELLO, "tools": [tool]}
called = client.messages.create(**asked, tool_choice={"type": "any"})
assert called.stop_reason == "tool_use"
with client.messages.stream(**asked) as stream:
    (use,) = stream.get_final_message().content
assert (use.name, use.input) == ("add", {})
result = {"type": "tool_result", "tool_use_id": use.id, "content": "4"}
turns = [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
assert client.messages.create(model=CHAT, max_tokens=8, messages=[*HELLO, *turns]).content[0].text
assert client.messages.count_tokens(model=CHAT, messages=HELLO, tools=[tool]).input_tokens
with pytest.raises(anthropic.NotFoundError) as failed:
    client.messages.create(model="no/no", max_tokens=8, messages=HELLO)
assert failed.value.body["error"]["type"] == "not_found_error"
print("passed")
