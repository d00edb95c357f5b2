"""Renders a model's chat template in a sandboxed child process.

A chat template is a program that came with the model, and may be malicious or broken. Rendering it
here could block the event loop or take all memory; see `chat_template_process` for the sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shared.caller import Weights
from shared.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    InvalidModelError,
)
from text_svc.processes import helpers
from text_svc.worker.asked_process import AskedProcess

PROCESS = "text_svc.worker.generation.chat_template_process"
RENDER_SECONDS = 2.0
# How long a new process may take until it is ready, on a busy machine.
START_SECONDS = 30.0
# For both, when a model is loaded; one that takes longer is loaded untried.
CHECK_SECONDS = 10.0


class NoToolsError(Exception):
    """The chat template takes no tools; whoever renders knows what to do then."""


class ChatTemplate:
    """Renders conversations. Close it after use.

    Args:
        source: the template; None if the model has none.
        variables: of the template, besides the messages, such as "bos_token".
        max_characters: most characters that the template may write.
        weights: of callers, who take turns.
    """

    def __init__(
        self,
        source: str | None,
        variables: Mapping[str, str],
        max_characters: int,
        weights: Weights | None = None,
    ) -> None:
        self._source = source
        self._variables = dict(variables)
        self._max_characters = max_characters
        self._process = AskedProcess(PROCESS, weights)

    def check(self) -> None:
        """Tries the template, in a process that ends. Blocks.

        Raises:
            InvalidModelError: it leaves out what a user says.
        """
        if self._source is None:
            return
        question = self._request([{"role": "user", "content": "?"}]) | {"texts": None}
        lines = "".join(json.dumps(each) + "\n" for each in (self._setup(), question))
        process = helpers.take(PROCESS)
        try:
            answers = helpers.communicate(process, lines.encode(), CHECK_SECONDS).splitlines()
        except TimeoutError:
            return  # calls will show whether it works
        if len(answers) == 2 and "left_out" in json.loads(answers[1]):
            raise InvalidModelError(
                "the model's chat template leaves out what a user says, as a string and as a list "
                "of parts"
            )

    async def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Renders a conversation to a prompt that ends where the assistant's answer starts.

        Raises:
            FailedPreconditionError: the model has no chat template.
            InvalidArgumentError: the template refuses these messages, or exceeds a limit.
        """
        return await self._render(self._request(messages))

    async def render_texts(
        self,
        messages: Sequence[Mapping[str, Any]],
        texts: Sequence[str] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        think: bool | None = None,
    ) -> str:
        """As `render`, with the messages in the form that the template wants.

        Args:
            messages: their contents are strings; or parts, if there are `texts`.
            texts: the contents as strings.
            tools: that the model may call, as OpenAI's API has them.
            think: for the template's switch of reasoning; None for its default.

        Raises:
            As `render`.
            InvalidArgumentError: also if the template leaves out a text, other than an assistant's.
            NoToolsError: the template leaves out the tools.
            FailedPreconditionError: also if it has no switch of reasoning.
        """
        asked: dict[str, Any] = {"texts": texts, "tools": list(tools) or None}
        if think is not None:
            asked["think"] = think
        return await self._render(self._request(messages) | asked)

    async def _render(self, request: dict[str, Any]) -> str:
        if self._source is None:
            raise FailedPreconditionError(
                "the model has no chat template; use GenerateText, or load a model made for chat"
            )
        answer = await self._process.in_turn(lambda: self._ask(request))
        if "error" in answer:
            raise InvalidArgumentError(
                f"the model's chat template refuses these messages: {answer['error']}",
                field="messages",
            )
        if "no_tools" in answer:
            raise NoToolsError
        if "no_switch" in answer:
            raise FailedPreconditionError(
                "the model's chat template has no switch of reasoning, so think must be absent"
            )
        if "left_out" in answer:
            field = f"messages[{answer['left_out']}].content"
            role = request["messages"][answer["left_out"]]["role"]
            raise InvalidArgumentError(
                f"the model's chat template leaves out {field}, whose role is {role}", field=field
            )
        text: str = answer["text"]
        return text

    async def close(self) -> None:
        """Ends the process."""
        await self._process.close()

    def _request(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return self._variables | {
            "messages": list(messages),
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }

    def _setup(self) -> dict[str, Any]:
        return {"template": self._source, "max_characters": self._max_characters}

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if not self._process.running:
            try:
                started = await self._process.start(self._setup(), START_SECONDS)
            except (TimeoutError, EOFError) as error:
                started = {"error": repr(error)}
            if "error" in started:
                raise InternalError("the process that renders chat templates did not start")
        try:
            return await self._process.ask(request, RENDER_SECONDS)
        except TimeoutError:
            return {"error": f"it takes longer than {RENDER_SECONDS:g} s"}
        except EOFError:
            return {"error": "it ended its process"}
