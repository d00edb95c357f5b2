"""Commands of `ml`, run in this process: each would take half a second to start."""

from __future__ import annotations

import io
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import TextIO

from cli.app import app


class CommandError(Exception):
    """A command has failed.

    Args:
        message: what it has said on stderr.
        exit_code: docs/cli.md has what each means.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class _Copy(io.StringIO):
    """A stream, and what goes there."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(text)
        self._stream.flush()
        return super().write(text)

    def isatty(self) -> bool:
        return self._stream.isatty()


class Commands:
    """Runs commands, and shows them as a person would type them.

    Args:
        address: of Envoy.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def run(self, *arguments: str) -> str:
        """What a command has printed on stdout, without the line's end.

        Raises:
            CommandError: it has failed.
        """
        sys.stdout.write(f"$ {shlex.join(('ml', *arguments))}\n")
        sys.stdout.flush()
        said, complaints = _Copy(sys.stdout), _Copy(sys.stderr)
        with redirect_stdout(said), redirect_stderr(complaints):
            command = [arguments[0], "--address", self._address, *arguments[1:]]
            exit_code = app(command, prog_name="ml", standalone_mode=False)
        if exit_code:
            raise CommandError(complaints.getvalue().strip(), exit_code)
        return said.getvalue().rstrip("\n")
