"""The child process of `chat_template`: renders one template for many conversations.

A template is a program that came with a model, so it does not run in the worker. Here it runs in
jinja2's sandbox, with little memory and no files to write, and the worker kills the process if it
takes too long. Requests and replies are JSON, one per line; the first line is the template.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any, NamedTuple, NoReturn

from jinja2 import Template, meta, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.process import die_with_parent
from text_svc.link.json_lines import BlockingJsonLines
from text_svc.processes import sandbox
from text_svc.worker.generation import template_forms
from text_svc.worker.generation.template_forms import Messages, Seen

MEMORY_BYTES = 512 << 20
# Shapes of conversations whose form is remembered, and the longest of them, in messages.
MAX_KNOWN_SHAPES = 256
MAX_KNOWN_MESSAGES = 64
# Variables by which templates switch reasoning on or off.
SWITCHES = ("enable_thinking", "thinking")


class _Form(NamedTuple):
    """What a template makes of conversations of one shape.

    Attributes:
        number: of the form that it wants, see `template_forms`.
        left_out: the message that it leaves out in all forms.
        tools: whether it writes the tools.
    """

    number: int
    left_out: int | None
    tools: bool


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
        self._known: dict[str, _Form] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request, the template's variables.

        With `texts`, the messages are rendered in the form that the template wants, see
        `template_forms`; None stands for contents that are strings. `think` is for the template's
        own switch.

        Returns:
            "text"; or "error", why the template cannot be rendered; or "left_out", the index of a
            message whose text does not come out in any form; or "no_tools", for tools that do not
            come out; or "no_switch".
        """
        if (think := request.pop("think", None)) is not None:
            switches = self._switches()
            if not switches:
                return {"no_switch": True}
            request |= dict.fromkeys(switches, think)
        if "texts" not in request:
            return self._rendered(request)
        forms = template_forms.forms(request["messages"], request.pop("texts"))
        form = self._form(request, forms)
        if form.left_out is not None:
            return {"left_out": form.left_out}
        if request.get("tools") and not form.tools:
            return {"no_tools": True}
        return self._rendered(request | {"messages": forms[form.number]})

    def _switches(self) -> list[str]:
        """Those of SWITCHES that the template reads; none if it is broken, which calls show."""
        try:
            read = meta.find_undeclared_variables(self._environment.parse(self._source))
        except TemplateError:
            return []
        return [name for name in SWITCHES if name in read]

    def _form(self, request: dict[str, Any], forms: list[Messages]) -> _Form:
        shape = json.dumps([template_forms.probe(forms[0]), bool(request.get("tools"))])
        if shape in self._known:
            return self._known[shape]
        form = self._find_form(request, forms)
        if len(forms[0]) <= MAX_KNOWN_MESSAGES:
            while len(self._known) >= MAX_KNOWN_SHAPES:  # the ids of calls may all differ
                del self._known[next(iter(self._known))]
            self._known[shape] = form
        return form

    def _find_form(self, request: dict[str, Any], forms: list[Messages]) -> _Form:
        all_seen: list[Seen | None] = []
        for index, form in enumerate(forms):
            seen = self._seen(request, form)
            if seen and not seen.left_out and seen.calls:
                return _Form(index, None, seen.tools)
            all_seen.append(seen)
        # Some templates leave out the calls of earlier turns.
        for index, seen in enumerate(all_seen):
            if seen and not seen.left_out:
                return _Form(index, None, seen.tools)
        if all_seen[0] is None:
            return _Form(0, None, True)  # its error is told
        left_out = min((seen.left_out for seen in all_seen if seen), key=len)
        return _Form(0, left_out[0], True)

    def _seen(self, request: dict[str, Any], messages: Messages) -> Seen | None:
        """What comes out of such a conversation; None if there is an error."""
        probed = template_forms.probe(messages)
        tools = [template_forms.PROBE_TOOL] if request.get("tools") else None
        answer = self._rendered(request | {"messages": probed, "tools": tools})
        return None if "error" in answer else template_forms.seen(probed, answer["text"])

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


def main() -> None:
    """Entry point; the one argument is the parent's process id."""
    die_with_parent(int(sys.argv[1]))
    sandbox.enter()
    # Not of addresses: a process that was forked has large libraries mapped.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
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
