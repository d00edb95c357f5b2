"""What commands print: results on stdout, progress and errors on stderr.

Colours and progress are for terminals alone, and colours not with NO_COLOR.
"""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at it."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def coloured(stream: TextIO) -> bool:
    """Whether it may have colours (https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def progress_is_shown(json: bool) -> bool:
    """Whether a person sees progress, which goes to stderr."""
    return not json and is_terminal(sys.stderr)


def console() -> Console:
    """Rich's console for progress, on stderr."""
    from rich.console import Console

    return Console(stderr=True, no_color=not coloured(sys.stderr), highlight=False)


def printable(text: str) -> str:
    """A text that cannot move the cursor or colour a terminal: control characters are replaced.

    Texts come from models, files and other callers.
    """
    return "".join(
        "�" if unicodedata.category(each) == "Cc" and each not in "\n\t" else each for each in text
    )


def write(text: str) -> None:
    """Prints a piece of a text at once; what goes into a file or a pipe is as it came."""
    sys.stdout.write(printable(text) if is_terminal(sys.stdout) else text)
    sys.stdout.flush()


def line(text: str) -> None:
    """Prints a line."""
    write(f"{text}\n")


def note(text: str) -> None:
    """Says something that is no result, on stderr."""
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()


def json_line(value: Any) -> None:
    """Prints a JSON value as one line."""
    sys.stdout.write(f"{dumped(value)}\n")
    sys.stdout.flush()


def dumped(value: Any) -> str:
    """A value as JSON, in which every control character is escaped, those beyond ASCII too."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)


def plain(message: Message) -> dict[str, Any]:
    """A message as JSON has it: the names of the proto, all fields, bytes in base64.

    Unlike protobuf's own JSON, 64-bit integers are numbers, as `jq` and people expect.
    """
    from google.protobuf import json_format

    values: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _numbers(message.DESCRIPTOR, values)
    return values


def _numbers(descriptor: Any, values: dict[str, Any]) -> None:
    for field in descriptor.fields:
        value = values.get(field.name)
        if value is None or ((kind := field.message_type) and kind.GetOptions().map_entry):
            continue
        each = value if isinstance(value, list) else [value]
        if kind:
            for part in each:
                _numbers(kind, part)
        elif field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
            numbers = [int(number) for number in each]
            values[field.name] = numbers if isinstance(value, list) else numbers[0]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints columns, as wide as their longest text and never wrapped."""
    if not rows:
        return
    cells = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (heads, *cells)) for i in range(len(heads))]
    head = _row(heads, widths)
    sys.stdout.write(f"\033[1m{head}\033[0m\n" if coloured(sys.stdout) else f"{head}\n")
    for row in cells:
        line(_row(row, widths))


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "  ".join(padded).rstrip()
