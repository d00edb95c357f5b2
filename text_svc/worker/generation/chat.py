"""A conversation as a request asks for it: how it is rendered, and what its answer is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from ml import transformers_pb2 as pb
from shared.errors import FailedPreconditionError
from text_svc.worker.answers import formats
from text_svc.worker.answers.answer import Answer, AnswerForm
from text_svc.worker.answers.reasoning import marks_of
from text_svc.worker.answers.syntax import Syntax
from text_svc.worker.engines.forms import Form
from text_svc.worker.generation.chat_template import NoToolsError
from text_svc.worker.generation.forced_calls import required_calls, strict_calls
from text_svc.worker.generation.tools import ToolRequest, read_tools, turns_of

Turns = list[dict[str, Any]]

AUTO = "auto"
# What templates call the reasoning of an earlier answer.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


class Render(Protocol):
    """`ChatTemplate.render_texts`."""

    async def __call__(
        self,
        messages: Sequence[dict[str, Any]],
        texts: Sequence[str] | None = None,
        tools: Sequence[dict[str, Any]] = (),
        think: bool | None = None,
    ) -> str: ...


class ChatModel:
    """What a model's chat template and vocabulary say of its conversations.

    Args:
        template: its source; None if the model has none.
        has_token: whether the vocabulary has a token.
        tool_format: the load option.
        forces: whether the model's engine can force calls.
    """

    def __init__(
        self,
        template: str | None,
        has_token: Callable[[str], bool],
        tool_format: str = AUTO,
        *,
        forces: bool = False,
    ) -> None:
        template = template or ""
        self._template = template
        self._forces = forces
        self._explicit = tool_format != AUTO
        self._format = (
            formats.named(tool_format) if self._explicit else formats.of_template(template)
        )
        self._reasoning = marks_of(template, has_token)
        self._developer = "developer" if "developer" in template else "system"
        self._reasoning_keys = [
            key for key in REASONING_KEYS if re.search(rf"(\.|\[['\"]|get\(['\"]){key}\b", template)
        ]

    def read(self, request: pb.ChatRequest) -> Chat:
        """The conversation of a request.

        Raises:
            InvalidArgumentError: its tools or its calls are not valid.
            FailedPreconditionError: it has tools, and the model's format of calls is not known.
        """
        tools = read_tools(request)
        if tools and self._format is None:
            raise FailedPreconditionError(
                "the format in which this model writes calls of tools is not known: its chat "
                "template has none of the formats " + ", ".join(formats.NAMES) + "; load it with "
                "the option tool_format to choose one"
            )
        if tools and (tools.required or tools.strict) and not self._forces:
            raise FailedPreconditionError(
                "the engine of this model cannot force a call, so tool_choice must be one of auto, "
                "none, tool_name must be empty, and no tool may be strict"
            )
        turns = turns_of(
            request.messages,
            developer=self._developer,
            id_characters=self._format.id_characters if self._format else 0,
        )
        for turn in turns:
            if reasoning := turn.pop("reasoning", ""):
                turn |= dict.fromkeys(self._reasoning_keys, reasoning)
        form = AnswerForm(
            tools=tools.tools if tools else None,
            format=self._format if tools else None,
            parallel=not tools or tools.parallel,
            reasoning=self._reasoning,
            separate=request.separate_reasoning,
        )
        think = request.think if request.HasField("think") else None
        syntax = self._format.syntax(self._template) if self._format else None
        return Chat(turns, tools, form, think, syntax)


class Chat:
    """One conversation.

    Attributes:
        turns: the messages as chat templates take them; contents are strings.
        prompt: as it was rendered; "" before.
    """

    def __init__(
        self,
        turns: Turns,
        tools: ToolRequest | None,
        form: AnswerForm,
        think: bool | None,
        syntax: Syntax | None = None,
    ) -> None:
        self._syntax = syntax
        self.turns = turns
        self.prompt = ""
        self._tools = tools
        self._form = form
        self._think = think

    async def render(
        self, render: Render, turns: Turns | None = None, texts: Sequence[str] | None = None
    ) -> str:
        """Renders the conversation.

        Args:
            render: of the model's chat template.
            turns: with contents in parts, instead of strings.
            texts: the contents of these as strings.

        Raises:
            What `render` does.
            FailedPreconditionError: the template takes no tools.
        """
        declared = self._tools.declared if self._tools else ()
        try:
            self.prompt = await render(turns or self.turns, texts, declared, self._think)
        except NoToolsError:
            raise FailedPreconditionError(
                "the model's chat template takes no tools; use a model that is made for them"
            ) from None
        return self.prompt

    @property
    def forced(self) -> bool:
        """Whether a call is forced, or has arguments that are."""
        return bool(self._tools and (self._tools.required or self._tools.strict))

    def calls(self) -> Form | None:
        """The form of an answer with calls that are forced, once it is rendered; None if none is.

        Blocks.

        Raises:
            InvalidArgumentError, InputTooLargeError, FailedPreconditionError: as `forced_calls`.
        """
        tools, reasoning = self._tools, self._form.reasoning
        if tools is None or self._syntax is None:
            return None
        if not tools.required:
            return strict_calls(self._syntax, tools) if tools.strict else None
        opened = bool(reasoning and reasoning.opened_by(self.prompt))
        if self._think is False and not opened:
            reasoning = None
        return required_calls(self._syntax, tools, reasoning, opened=opened)

    @property
    def answer(self) -> Callable[[], Answer] | None:
        """Makes what takes an answer apart; None if it is content alone."""
        if self._form.tools is None and not (self._form.separate and self._form.reasoning):
            return None
        return partial(Answer, self._form, self.prompt)
