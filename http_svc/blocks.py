"""An answer as a row of blocks: reasoning, text and calls of tools, as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ml import transformers_pb2 as pb

Kind = Literal["reasoning", "text", "call"]


@dataclass
class Block:
    """One block.

    Attributes:
        kind: what it is.
        index: its place in the answer.
        call_id: of a call.
        name: of the tool that is called.
        pieces: of its text, which in a call are the arguments.
    """

    kind: Kind
    index: int
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)


class Step(NamedTuple):
    """What happens to a block: it begins, goes on with a text, or ends."""

    what: Literal["begin", "add", "end"]
    block: Block
    text: str = ""


class Blocks:
    """Takes the messages of an answer apart.

    Attributes:
        all: the blocks so far; a whole answer has at least one.
    """

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None

    def steps(self, response: pb.ChatResponse) -> Iterator[Step]:
        """What is new with a message."""
        if response.reasoning:
            yield from self._text("reasoning", response.reasoning)
        if response.content:
            yield from self._text("text", response.content)
        for delta in response.tool_calls:
            if delta.id or not (self._open and self._open.kind == "call"):
                yield from self._begin("call", delta.id, delta.name)
            if delta.arguments and self._open:
                yield self._add(self._open, delta.arguments)
        if response.done:
            if not self.all:
                yield from self._begin("text")
            yield from self._end()

    def _text(self, kind: Kind, text: str) -> Iterator[Step]:
        if self._open is None or self._open.kind != kind:
            yield from self._begin(kind)
        if self._open:
            yield self._add(self._open, text)

    def _begin(self, kind: Kind, call_id: str = "", name: str = "") -> Iterator[Step]:
        yield from self._end()
        self._open = Block(kind, len(self.all), call_id, name)
        self.all.append(self._open)
        yield Step("begin", self._open)

    def _add(self, block: Block, text: str) -> Step:
        block.pieces.append(text)
        return Step("add", block, text)

    def _end(self) -> Iterator[Step]:
        if self._open:
            yield Step("end", self._open)
        self._open = None


async def whole(
    responses: AsyncGenerator[pb.ChatResponse, None],
) -> tuple[list[Block], pb.ChatResponse]:
    """All blocks of an answer, and its last message."""
    blocks, last = Blocks(), pb.ChatResponse()
    async with aclosing(responses):
        async for last in responses:
            for _ in blocks.steps(last):
                pass
    return blocks.all, last
