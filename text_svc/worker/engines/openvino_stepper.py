"""Runs the steps of OpenVINO GenAI's continuous batching in a child process.

The only reason for the process is that `step` of OpenVINO GenAI 2026.4 holds the GIL: in the
worker, no other Python code would run during a step. Once a release of OpenVINO GenAI frees the
GIL there, replace `OpenVinoStepper` by a thread that calls the pipeline, as `torch_batch.engine`
has one, and delete this module and `openvino_process`. Nothing else knows of the process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from shared.errors import InvalidModelError
from text_svc.link.json_lines import JsonLines
from text_svc.processes import helpers
from text_svc.worker.engines.base import FinishReason

log = logging.getLogger(__name__)

PROCESS = "text_svc.worker.engines.openvino_process"
CLOSE_SECONDS = 5.0

# The number, the new tokens, the finish reason and the tokens' log-probabilities, if it wants them,
# of each generation that a step brought forward.
Step = Sequence[tuple[int, list[int], FinishReason | None, list[float] | None]]


class OpenVinoStepper:
    """A pipeline in a process. Generations are known by numbers that the caller chooses.

    The constructor blocks until the model is loaded. All other methods are called on the event
    loop's thread, as are the callbacks.

    Args:
        on_step: called with what each step generated, and after the first step with the bytes of
            the key-value cache, used or not.
        on_refused: called with the number of a generation that failed alone, and the reason.
        on_death: called if the process ends by itself.
        setup: the arguments of `openvino_process.make_pipeline`.

    Raises:
        InvalidModelError: OpenVINO cannot load the model.
    """

    def __init__(
        self,
        on_step: Callable[[Step, int | None], None],
        on_refused: Callable[[int, str], None],
        on_death: Callable[[], None],
        **setup: str | int,
    ) -> None:
        self._on_step = on_step
        self._on_refused = on_refused
        self._on_death = on_death
        self._lines: JsonLines | None = None
        self._given_back: asyncio.Future[bool] | None = None
        self._process = helpers.take(PROCESS)
        self._process.stdin.write(json.dumps(setup).encode() + b"\n")
        reply = json.loads(self._process.stdout.readline() or '{"error": "its process ended"}')
        if "error" in reply:
            self._process.wait()
            log.error("OpenVINO cannot load the model", extra={"error": reply["error"]})
            raise InvalidModelError("OpenVINO cannot load the converted model")

    def begin(self, number: int, prompt: Sequence[int], config: dict[str, Any]) -> None:
        """Starts a generation. `config` has attributes of OpenVINO's GenerationConfig."""
        self._connected().send({"id": number, "prompt": prompt, "config": config})

    def cancel(self, number: int) -> None:
        """Stops a generation after the step that runs."""
        self._connected().send({"cancel": number})

    async def give_back(self, *, renew: bool) -> bool:
        """Lets go of pages of the weights' file that are only read again if they are needed.

        Args:
            renew: makes the pipeline anew besides, with an empty key-value cache. There must be no
                generation.

        Returns:
            Whether it was made anew.
        """
        assert self._given_back is None, "one at a time"
        self._given_back = asyncio.get_running_loop().create_future()
        try:
            self._connected().send({"give_back": {"renew": renew}})
            return await self._given_back
        finally:
            self._given_back = None

    async def close(self) -> None:
        """Ends the process."""
        if self._lines:
            self._lines.close()
        if self._given_back:
            self._given_back.cancel()
        self._process.stdin.close()  # tells the process to end
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _connected(self) -> JsonLines:
        """The lines to the process, made on first use, when the event loop runs."""
        if self._lines is None:
            self._lines = JsonLines(
                self._process.stdin.fileno(),
                self._process.stdout.fileno(),
                self._on_message,
                self._on_death,
            )
        return self._lines

    def _on_message(self, message: dict[str, Any]) -> None:
        if "error" in message:
            self._on_refused(message["id"], message["error"])
        if "steps" in message:
            self._on_step(message["steps"], message.get("cache_bytes"))
        if "given_back" in message and self._given_back and not self._given_back.done():
            self._given_back.set_result(message["renewed"])
