"""The child process of `chat_template`: renders one template for many conversations.

A template is a program that came with a model, so it does not run in the worker. Here it runs in
jinja2's sandbox, with little memory and no files to write, and the worker kills the process if it
takes too long. Requests and replies are JSON, one per line; the first line is the template.

A template wants the content of a message as a string, or as a list of parts with a type, and gives
no error for the other one: it leaves the text out, or writes the list as Python does. So a
conversation with other texts is rendered first, and where these come out decides.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.process import die_with_parent
from text_svc.link.json_lines import BlockingJsonLines
from text_svc.processes import sandbox

MEMORY_BYTES = 512 << 20
# Shapes of conversations whose form is remembered, and the longest of them, in messages.
MAX_KNOWN_SHAPES = 256
MAX_KNOWN_MESSAGES = 64
# Roles whose text a template must not leave out. Of the assistant's, many write only a part.
CARRIED = ("system", "user")

Messages = list[dict[str, Any]]


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012  # as in the base class

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML, which models were not trained on.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def environment() -> ImmutableSandboxedEnvironment:
    """An environment with what the templates of Hugging Face models expect."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


class Renderer:
    """Renders one template.

    Args:
        template: its source.
        max_characters: most characters that it may write.
    """

    def __init__(self, template: str, max_characters: int) -> None:
        self._source = template
        self._limit = max_characters
        self._environment = environment()
        self._template: Template | None = None
        self._known: dict[str, tuple[int, int | None]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request, the template's variables.

        With `texts`, the messages are rendered in the form that the template wants: as they are, or
        with these contents. None stands for the contents in the other form.

        Returns:
            "text"; or "error", why the template cannot be rendered; or "left_out", the index of a
            message whose text does not come out in either form.
        """
        if "texts" not in request:
            return self._rendered(request)
        messages, texts = request["messages"], request.pop("texts")
        forms = [messages, _with_contents(messages, texts or map(_parts, messages))]
        form, left_out = self._form(request, forms)
        if left_out is not None:
            return {"left_out": left_out}
        return self._rendered(request | {"messages": forms[form]})

    def _form(self, request: dict[str, Any], forms: list[Messages]) -> tuple[int, int | None]:
        """The form that the template wants, and the message that it leaves out in both."""
        shape = json.dumps(_probe(forms[0]))
        if shape in self._known:
            return self._known[shape]
        left_out = [self._left_out(request, forms[0])]
        if left_out[0] != []:
            left_out.append(self._left_out(request, forms[1]))
        found: tuple[int, int | None] = (left_out.index([]), None) if [] in left_out else (0, None)
        if [] not in left_out and left_out[0] is not None:  # else its error is told
            found = 0, min((each for each in left_out if each), key=len)[0]
        if len(self._known) < MAX_KNOWN_SHAPES and len(forms[0]) <= MAX_KNOWN_MESSAGES:
            self._known[shape] = found
        return found

    def _left_out(self, request: dict[str, Any], messages: Messages) -> list[int] | None:
        """The messages of such a conversation that do not come out; None if there is an error."""
        probe = _probe(messages)
        answer = self._rendered(request | {"messages": probe})
        if "error" in answer:
            return None
        out = answer["text"].casefold()
        return [
            index
            for index, message in enumerate(probe)
            if message["role"] in CARRIED
            for word in _words(message["content"])
            # The last two are a list that was written as text.
            if word not in out or f"'text': '{word}" in out or f'"text": "{word}' in out
        ]

    def _rendered(self, variables: dict[str, Any]) -> dict[str, str]:
        text: list[str] = []
        size = 0
        try:
            if self._template is None:
                self._template = self._environment.from_string(self._source)
            for piece in self._template.generate(variables):
                size += len(piece)
                if size > self._limit:
                    return {"error": f"it writes more than {self._limit} characters"}
                text.append(piece)
            whole = "".join(text)
            whole.encode()  # half of a surrogate pair cannot be encoded
        except MemoryError:
            return {"error": "it takes too much memory"}
        except Exception as error:  # noqa: BLE001  # any error is the template's
            return {"error": str(error)[:200] or type(error).__name__}
        return {"text": whole}


def _with_contents(messages: Messages, contents: Iterable[Any]) -> Messages:
    return [
        message | {"content": content} for message, content in zip(messages, contents, strict=True)
    ]


def _parts(message: dict[str, Any]) -> list[dict[str, str]]:
    return [{"type": "text", "text": message["content"]}]


def _probe(messages: Messages) -> Messages:
    """A conversation of the same shape, in which each text is a word that is nowhere else."""

    def content(index: int, own: Any) -> Any:
        if isinstance(own, str):
            return f"word{index}end" if own else ""
        return [
            part | {"text": f"word{index}part{number}end"} if part.get("text") else part
            for number, part in enumerate(own)
        ]

    return _with_contents(
        messages, [content(index, message["content"]) for index, message in enumerate(messages)]
    )


def _words(content: Any) -> list[str]:
    texts = [content] if isinstance(content, str) else [part.get("text") for part in content]
    return [text for text in texts if text]


def main() -> None:
    """Entry point; the one argument is the parent's process id."""
    die_with_parent(int(sys.argv[1]))
    sandbox.enter()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lines = BlockingJsonLines()
    setup = lines.receive()
    if setup is None:
        return
    renderer = Renderer(**setup)
    lines.send({"text": ""})  # ready
    while (request := lines.receive()) is not None:
        lines.send(renderer.answer(request))


if __name__ == "__main__":
    main()
