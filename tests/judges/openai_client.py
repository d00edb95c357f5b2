"""OpenAI's own client, in its strict mode: what an answer lacks or has otherwise raises."""

from __future__ import annotations

import io
import os
import sys
import wave

import openai
import pytest

CHAT, EMBEDDER, SPEECH, VOICE = sys.argv[1:]
HELLO = [{"role": "user", "content": "Say hello."}]
client = openai.OpenAI(
    base_url=os.environ["OPENAI_BASE_URL"],
    api_key="none",
    max_retries=0,
    _strict_response_validation=True,
)
lenient = openai.OpenAI(base_url=os.environ["OPENAI_BASE_URL"], api_key="none", max_retries=0)


def chats() -> None:
    answer = client.chat.completions.create(model=CHAT, messages=HELLO, max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    stream = client.chat.completions.create(
        model=CHAT,
        messages=HELLO,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = stream
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert not last.choices
    assert last.usage.completion_tokens


def completes() -> None:
    answer = client.completions.create(model=CHAT, prompt=["One, two,", "A, b,"], max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1]
    # Not strict: OpenAI itself sends null as finish_reason until the end, which its client's types
    # do not know.
    stream = lenient.completions.create(model=CHAT, prompt="One,", max_tokens=4, stream=True)
    *chunks, last = stream
    assert "".join(chunk.choices[0].text for chunk in chunks)
    assert last.choices[0].finish_reason in ("stop", "length")


def responds() -> None:
    answer = client.responses.create(model=CHAT, input="Say hello.", max_output_tokens=8)
    assert answer.output_text
    with client.responses.stream(model=CHAT, input="Say hello.", max_output_tokens=8) as stream:
        first, *_, last = stream
    assert first.type == "response.created"
    # `get_final_response` refuses an answer that the limit cuts, as this one may be.
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text


def embeds() -> None:
    # Not strict: the client asks for base64 and checks the answer before it decodes it.
    one = lenient.embeddings.create(model=EMBEDDER, input=["a cat", "a dog"])
    two = client.embeddings.create(model=EMBEDDER, input=["a cat"], encoding_format="float")
    assert len(one.data) == 2
    assert len(one.data[0].embedding) == 384
    difference = [
        abs(a - b) for a, b in zip(one.data[0].embedding, two.data[0].embedding, strict=True)
    ]
    assert max(difference) < 1e-3
    short = lenient.embeddings.create(model=EMBEDDER, input="x", dimensions=8)
    assert len(short.data[0].embedding) == 8


def lists() -> None:
    assert {CHAT, EMBEDDER} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(CHAT).id == CHAT


def speaks_and_hears() -> None:
    spoken = client.audio.speech.create(model=VOICE, voice="alloy", input="hɛlˈoʊ wˈɜːld.")
    assert spoken.content[:3] in (b"ID3", b"\xff\xfb\x90") or spoken.content[0] == 0xFF
    silence = io.BytesIO()
    with wave.open(silence, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(32_000))
    for kind in ("json", "verbose_json", "srt"):
        client.audio.transcriptions.create(
            model=SPEECH, file=("a.wav", silence.getvalue()), response_format=kind
        )
    heard = client.audio.transcriptions.create(model=SPEECH, file=("a.mp3", spoken.content))
    assert "world" in heard.text.lower()
    stream = client.audio.transcriptions.create(
        model=SPEECH, file=("a.mp3", spoken.content), stream=True
    )
    *_, last = stream
    assert "world" in last.text.lower()


def fails() -> None:
    for raised, call in (
        (
            openai.NotFoundError,
            lambda: client.chat.completions.create(model="no/no", messages=HELLO),
        ),
        (openai.BadRequestError, lambda: client.chat.completions.create(model=CHAT, messages=[])),
        (openai.BadRequestError, lambda: client.embeddings.create(model=CHAT, input="x")),
        (openai.NotFoundError, lambda: client.models.retrieve("no/no")),
    ):
        with pytest.raises(raised) as failed:
            call()
        assert failed.value.body["message"]
        assert failed.value.body["type"] == "invalid_request_error"


for each in (chats, completes, responds, embeds, lists, speaks_and_hears, fails):
    each()
    print("passed", each.__name__)
