"""The chat template of a model, rendered in a process of its own under limits."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from shared.errors import FailedPreconditionError, InternalError, InvalidArgumentError

_PROCESS = "text_svc.worker.generation.chat_template_process"
RENDER_SECONDS = 2.0
# A fresh process needs this on a busy machine before its first answer.
START_SECONDS = 30.0
# One line of an answer; JSON writes a character in 12 bytes at most.
MAX_LINE_BYTES = 64 << 20


class ChatTemplate:
    """Renders conversations. Close it after use.

    Args:
        source: the template; None where the model has none.
        variables: what it finds beside the messages, such as "bos_token".
        max_characters: of the text that it may write.
    """

    def __init__(
        self, source: str | None, variables: Mapping[str, str], max_characters: int
    ) -> None:
        self._source = source
        self._variables = dict(variables)
        self._max_characters = max_characters
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt of a conversation, ready for the assistant's answer.

        Raises:
            FailedPreconditionError: the model has no chat template.
            InvalidArgumentError: it refuses these messages, or goes over its limits.
        """
        if self._source is None:
            raise FailedPreconditionError(
                "the model has no chat template; use GenerateText, or load a model made for chat"
            )
        request = self._variables | {
            "messages": list(messages),
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        await self._turn.acquire()
        # A caller that goes away while it waits is out of the line; later it must not leave half an
        # exchange behind.
        exchange = asyncio.ensure_future(self._ask(request))
        exchange.add_done_callback(self._end_turn)
        answer = await asyncio.shield(exchange)
        if "error" in answer:
            raise InvalidArgumentError(
                f"the model's chat template refuses these messages: {answer['error']}",
                field="messages",
            )
        text: str = answer["text"]
        return text

    async def close(self) -> None:
        """Ends the process."""
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._process = None

    def _end_turn(self, exchange: asyncio.Future[dict[str, str]]) -> None:
        if not exchange.cancelled():
            exchange.exception()  # its caller may have gone
        self._turn.release()

    async def _ask(self, request: dict[str, Any]) -> dict[str, str]:
        if self._process is None or self._process.returncode is not None:
            started = await self._start()
            if "error" in started:
                raise InternalError("the process that renders chat templates does not start")
        return await self._exchange(request, RENDER_SECONDS)

    async def _start(self) -> dict[str, str]:
        self._process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                _PROCESS,
                str(os.getpid()),
            ),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
        )
        setup = {"template": self._source, "max_characters": self._max_characters}
        return await self._exchange(setup, START_SECONDS)

    async def _exchange(self, message: dict[str, Any], seconds: float) -> dict[str, str]:
        process = self._process
        if not (process and process.stdin and process.stdout):
            raise RuntimeError("the process was not started, or without pipes")
        try:
            async with asyncio.timeout(seconds):
                process.stdin.write(json.dumps(message).encode() + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
            answer: dict[str, str] = json.loads(line)
        except TimeoutError:
            await self.close()
            return {"error": f"it takes longer than {seconds:g} s"}
        except (OSError, ValueError):  # it has ended, or wrote a line without end
            await self.close()
            return {"error": "it ended its process"}
        return answer
