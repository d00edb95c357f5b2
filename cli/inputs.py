"""What a person gives: texts, lines, pictures and other files; "-" is stdin."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cli.failures import CliError

STDIN = "-"
# How the formats that vision_svc reads begin; WebP has its name behind a length.
_PICTURES = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"))


def assignments(texts: Sequence[str] | None) -> dict[str, str]:
    """Options, each as NAME=VALUE.

    Raises:
        CliError: one has no name or no "=".
    """
    options = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise CliError(f"option {text!r} must be NAME=VALUE")
        options[name] = value
    return options


def read_bytes(path: str) -> bytes:
    """A file, or all of stdin.

    Raises:
        CliError: it cannot be read, or is empty.
    """
    try:
        data = sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from None
    if not data:
        raise CliError(f"{_named(path)} is empty")
    return data


def picture_format(path: str, data: bytes) -> str:
    """The format of a picture, by how it begins.

    Raises:
        CliError: it is none that the services read.
    """
    for beginning, name in _PICTURES:
        if data.startswith(beginning):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise CliError(f"{_named(path)} is not a picture: it must be JPEG, PNG or WebP")


def read_text(parts: Sequence[str]) -> str:
    """A text out of arguments, of which one may be stdin. They are joined by empty lines.

    Without arguments it is stdin, unless that is a terminal.

    Raises:
        CliError: there is no text.
    """
    if not parts and sys.stdin.isatty():
        raise CliError('there is no text: give it as an argument, or "-" for stdin')
    _once(parts)
    texts = [_read_stdin() if part == STDIN else part for part in parts or (STDIN,)]
    text = "\n\n".join(each for each in texts if each)
    if not text:
        raise CliError("the text is empty")
    return text


def read_lines(parts: Sequence[str]) -> Iterator[str]:
    """Texts: arguments, and the lines of stdin as they come, for "-" or without arguments.

    Raises:
        CliError: there is none, since stdin is a terminal.
    """
    if not parts and sys.stdin.isatty():
        raise CliError('there is no text: give some as arguments, or "-" for the lines of stdin')
    _once(parts)
    for part in parts or (STDIN,):
        if part != STDIN:
            yield part
            continue
        for line in sys.stdin:
            if text := line.rstrip("\r\n"):
                yield text


def _once(parts: Sequence[str]) -> None:
    if list(parts).count(STDIN) > 1:
        raise CliError('"-" can be given once: there is one stdin')


def _read_stdin() -> str:
    try:
        return sys.stdin.read().rstrip("\r\n")
    except UnicodeDecodeError:
        raise CliError("stdin is not text") from None


def _named(path: str) -> str:
    return "stdin" if path == STDIN else path
