"""Items of /v1/responses: those of a conversation, and those of an answer."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from http_svc.blocks import Block
from http_svc.bodies import Body, Items
from http_svc.content import image
from ml import transformers_pb2 as pb


class TextPart(Body):
    """Text of a caller, or of an earlier answer."""

    type: Literal["input_text", "output_text"]
    text: str


class RefusalPart(Body):
    """What an assistant said when it refused."""

    type: Literal["refusal"]
    refusal: str


class ImagePart(Body):
    """A picture as a data URL."""

    type: Literal["input_image"]
    image_url: str


Part = Annotated[TextPart | RefusalPart | ImagePart, Field(discriminator="type")]


class Message(Body):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Items[Part]


class FunctionCall(Body):
    """A call that an assistant made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionCallOutput(Body):
    """What a function answered."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Items[Part]


class ReasoningText(Body):
    """A part of what an assistant thought."""

    type: Literal["reasoning_text"]
    text: str


class Reasoning(Body):
    """What an assistant thought before it answered."""

    type: Literal["reasoning"]
    content: Items[ReasoningText] | None = None


def _type(item: Any) -> Any:
    """The type of an item, which messages may leave out."""
    if isinstance(item, dict):
        return item.get("type", "message")
    return getattr(item, "type", None)


Item = Annotated[
    Annotated[Message, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[Reasoning, Tag("reasoning")],
    Discriminator(_type),
]


def put_items(request: pb.ChatRequest, items: Iterable[Item]) -> None:
    """Adds the messages of items to a request.

    What an assistant thought, said and called without an answer in between is one message.
    """
    turn: pb.ChatMessage | None = None
    for index, item in enumerate(items):
        field = f"input[{index}]"
        if isinstance(item, FunctionCallOutput):
            made, turn = request.messages.add(role="tool", tool_call_id=item.call_id), None
            _put_content(made, item.output, f"{field}.output")
        elif isinstance(item, Message) and item.role != "assistant":
            role = "system" if item.role == "developer" else item.role
            made, turn = request.messages.add(role=role), None
            _put_content(made, item.content, f"{field}.content")
        else:
            said = isinstance(item, Message | Reasoning)
            if turn is None or (said and (turn.content or isinstance(item, Reasoning))):
                turn = request.messages.add(role="assistant")
            if isinstance(item, Message):
                _put_content(turn, item.content, f"{field}.content")
            elif isinstance(item, Reasoning):
                turn.reasoning = "\n".join(part.text for part in item.content or ())
            else:
                turn.tool_calls.add(id=item.call_id, name=item.name, arguments=item.arguments)


def _put_content(made: pb.ChatMessage, content: str | list[Part], field: str) -> None:
    if isinstance(content, str):
        made.content = content
        return
    texts = []
    for index, part in enumerate(content):
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif isinstance(part, RefusalPart):
            texts.append(part.refusal)
        else:
            made.images.append(image(part.image_url, f"{field}[{index}].image_url"))
    made.content = "\n".join(texts)


_PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}


class OutputItem:
    """An item of an answer.

    Attributes:
        block: what it has.
        place: the fields that say where it is, in events.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self._id = f"{_PREFIXES[block.kind]}_{uuid.uuid4().hex}"
        self.place = {"item_id": self._id, "output_index": block.index}
        if block.kind != "call":
            self.place["content_index"] = 0

    def fields(self, status: str) -> dict[str, Any]:
        """The item with what it has so far."""
        block, begun = self.block, bool(self.block.pieces)
        item = {"id": self._id, "type": "message", "status": status}
        if block.kind == "call":
            call = {"call_id": block.call_id, "name": block.name, "arguments": block.text}
            return item | {"type": "function_call"} | call
        content = [self.part(block.text)] if begun or status != "in_progress" else []
        if block.kind == "reasoning":
            return item | {"type": "reasoning", "summary": [], "content": content}
        return item | {"role": "assistant", "content": content}

    def part(self, text: str) -> dict[str, Any]:
        """A part of its content."""
        if self.block.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
