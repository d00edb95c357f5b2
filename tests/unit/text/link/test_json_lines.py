"""JSON lines between a process and its child, over real pipes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from text_svc.link.json_lines import READ_BYTES, JsonLines

# Answers each message with itself, after some noise that must not reach the parent.
ECHO = """
from text_svc.link.json_lines import BlockingJsonLines
lines = BlockingJsonLines()
print("noise of a library", flush=True)
while (message := lines.receive()) is not None:
    lines.send(message)
"""


class Ends:
    """This side of a conversation, and what arrived."""

    def __init__(self, stdin: int, stdout: int, **limits: int) -> None:
        self.received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.lines = JsonLines(stdin, stdout, self.received.put_nowait, self.ended.set, **limits)


@asynccontextmanager
async def child(program: str, **limits: int) -> AsyncIterator[Ends]:
    child_in, stdin = os.pipe()
    stdout, child_out = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=child_in, stdout=child_out
    )
    os.close(child_in)
    os.close(child_out)
    ends = Ends(stdin, stdout, **limits)
    try:
        yield ends
    finally:
        ends.lines.close()
        os.close(stdin)
        os.close(stdout)
        await asyncio.wait_for(process.wait(), 60)


async def test_messages_of_every_length_come_back_in_order() -> None:
    sent = [{"text": "x" * size} for size in (0, 1, 3 * READ_BYTES, 7)] + [{"n": 1, "z": "é\n"}]
    async with child(ECHO) as ends:
        for message in sent:
            ends.lines.send(message)
        async with asyncio.timeout(60):
            assert [await ends.received.get() for _ in sent] == sent


async def test_messages_of_one_turn_leave_in_one_write() -> None:
    child_in, stdin = os.pipe()
    stdout, child_out = os.pipe()
    ends = Ends(stdin, stdout)
    try:
        for number in range(3):
            ends.lines.send({"id": number})
        await asyncio.sleep(0)
        assert os.read(child_in, READ_BYTES) == b'{"id":0}\n{"id":1}\n{"id":2}\n'
        ends.lines.send({"id": 3})
        ends.lines.close()
        await asyncio.sleep(0)
        os.set_blocking(child_in, False)
        with pytest.raises(BlockingIOError):  # nothing is written to descriptors that may be gone
            os.read(child_in, READ_BYTES)
    finally:
        for descriptor in (child_in, stdin, stdout, child_out):
            os.close(descriptor)


@pytest.mark.parametrize(
    "program",
    [
        "",
        "print('not json')",
        "print('x' * 3_000_000, flush=True); import sys; sys.stdin.read()",
    ],
)
async def test_the_end_and_what_is_not_a_message_end_the_conversation(program: str) -> None:
    async with child(program, max_line_bytes=1000) as ends:
        await asyncio.wait_for(ends.ended.wait(), 60)
        assert ends.received.empty()
