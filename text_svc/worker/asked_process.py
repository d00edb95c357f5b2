"""A child process that answers questions, one after the other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from shared.caller import Weights, caller, priority
from shared.errors import InternalError
from shared.turns import TurnLock
from text_svc.link.json_lines import JsonLines
from text_svc.processes import run_module

T = TypeVar("T")


class AskedProcess:
    """Runs a module that answers each JSON line with one. Close it after use.

    Args:
        module: its name.
        weights: of callers.
    """

    def __init__(self, module: str, weights: Weights | None = None) -> None:
        self._module = module
        self._process: asyncio.subprocess.Process | None = None
        self._pipes: tuple[int, ...] = ()
        self._lines: JsonLines | None = None
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._turn = TurnLock(weights)
        self._closed = False

    @property
    def running(self) -> bool:
        """Whether it can be asked."""
        return self._lines is not None

    async def in_turn(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Does something with the process while nobody else does. Callers take turns.

        A call that is cancelled while it waits for its turn simply leaves. Later, the work goes
        on without it: half of an exchange must not be left in the pipes.
        """
        release = await self._turn.acquire(caller(), priority())
        doing = asyncio.ensure_future(work())
        doing.add_done_callback(partial(self._end_turn, release))
        return await asyncio.shield(doing)

    async def start(self, setup: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Starts the process, in place of one that has ended.

        Args:
            setup: what it is told first.
            seconds: for its answer.

        Returns:
            Its answer.

        Raises:
            As `ask`.
            InternalError: it was closed.
        """
        await self.end()
        child_in, stdin = os.pipe()
        stdout, child_out = os.pipe()
        self._pipes = (stdin, stdout)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *run_module.command(self._module, str(os.getpid())),
                stdin=child_in,
                stdout=child_out,
            )
        finally:
            os.close(child_in)
            os.close(child_out)
        if self._closed:  # maybe while it started
            await self.end()
            raise InternalError("the model is being unloaded")
        self._lines = JsonLines(stdin, stdout, self._on_answer, self._on_end)
        return await self.ask(setup, seconds)

    async def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Asks the process, which has been started.

        Raises:
            TimeoutError: there is no answer in this time; the process is ended.
            EOFError: the process has ended.
        """
        assert self._lines is not None, "the process was started"
        self._answer = asyncio.get_running_loop().create_future()
        self._lines.send(question)
        try:
            async with asyncio.timeout(seconds):
                return await self._answer
        except (TimeoutError, EOFError):
            await self.end()
            raise

    async def end(self) -> None:
        """Ends the process; it may be started again."""
        process, self._process = self._process, None
        if self._lines:
            self._lines.close()
            self._lines = None
        for descriptor in self._pipes:
            os.close(descriptor)
        self._pipes = ()
        if process and process.returncode is None:
            process.kill()
            await process.wait()

    async def close(self) -> None:
        """Ends it for good."""
        self._closed = True
        await self.end()

    def _end_turn(self, release: Callable[[], None], doing: asyncio.Future[Any]) -> None:
        if not doing.cancelled():
            doing.exception()  # its caller may have been cancelled
        release()

    def _on_answer(self, answer: dict[str, Any]) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_result(answer)

    def _on_end(self) -> None:
        self._lines = None
        if self._answer and not self._answer.done():
            self._answer.set_exception(EOFError())
