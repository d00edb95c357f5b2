"""What a person gives: texts, lines, pictures and other files; "-" is stdin."""

from __future__ import annotations

import os
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


def read_lines(parts: Sequence[str], most: int = 64) -> Iterator[list[str]]:
    """Texts, some at a time: arguments, and the lines of stdin as they come.

    Args:
        parts: the arguments; "-" is stdin, and so are none.
        most: texts at a time.

    Raises:
        CliError: there is none, since stdin is a terminal; or stdin is not text.
    """
    if not parts and sys.stdin.isatty():
        raise CliError('there is no text: give some as arguments, or "-" for the lines of stdin')
    _once(parts)
    for part in parts or (STDIN,):
        for lines in _stdin_lines() if part == STDIN else ([part],):
            for start in range(0, len(lines), most):
                yield lines[start : start + most]


def _stdin_lines() -> Iterator[list[str]]:
    rest = b""
    for piece in stdin_pieces():
        *whole, rest = (rest + piece).split(b"\n")
        yield _texts(whole)
    yield _texts([rest])


def _texts(lines: Sequence[bytes]) -> list[str]:
    try:
        texts = [line.decode().rstrip("\r") for line in lines]
    except UnicodeDecodeError:
        raise CliError("stdin is not text") from None
    return [text for text in texts if text]


def stdin_pieces(size: int = 1 << 16) -> Iterator[bytes]:
    """What comes on stdin, as it comes.

    Not through `sys.stdin.buffer`: a thread that waits in there when the process ends crashes it.
    """
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError):  # it is no file
        yield sys.stdin.buffer.read()
        return
    while piece := os.read(descriptor, size):
        yield piece


def _once(parts: Sequence[str]) -> None:
    if list(parts).count(STDIN) > 1:
        raise CliError('"-" can be given once: there is one stdin')


def _read_stdin() -> str:
    try:
        text = sys.stdin.read().rstrip("\r\n")
        text.encode()  # in some locales, what is not text has been read as surrogates
    except UnicodeError:
        raise CliError("stdin is not text") from None
    return text


def _named(path: str) -> str:
    return "stdin" if path == STDIN else path
