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
from functools import cache
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


def _rendered(
    made: ImmutableSandboxedEnvironment, setup: dict[str, Any], variables: dict[str, Any]
) -> dict[str, str]:
    limit, text, size = int(setup["max_characters"]), [], 0
    try:
        for piece in _compiled(made, setup["template"]).generate(variables):
            size += len(piece)
            if size > limit:
                return {"error": f"it writes more than {limit} characters"}
            text.append(piece)
        whole = "".join(text)
        whole.encode()  # half of a surrogate pair cannot be encoded
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:  # noqa: BLE001  # any error is the template's
        return {"error": str(error)[:200] or type(error).__name__}
    return {"text": whole}


@cache
def _compiled(made: ImmutableSandboxedEnvironment, source: str) -> Template:
    return made.from_string(source)


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
    made = environment()
    lines.send({"text": ""})  # ready
    while (variables := lines.receive()) is not None:
        lines.send(_rendered(made, setup, variables))


if __name__ == "__main__":
    main()
