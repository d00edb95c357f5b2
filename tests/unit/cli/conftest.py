"""`ml` in this process, as a person types it, and services whose answers a test chooses."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.app import app
from tests.support.processes import free_port
from tests.support.scripted_services import Script, scripted_services


class Person:
    """Types commands.

    Attributes:
        address: of what answers.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def types(
        self, *arguments: str, exit_code: int = 0, stdin: str | bytes | None = None
    ) -> Result:
        """What a command prints; it must end with this exit code, and never with a traceback."""
        environment = {"ML_ADDRESS": self.address}
        result = CliRunner().invoke(app, arguments, input=stdin or "", env=environment)
        assert result.exit_code == exit_code, (result.output, result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    def reads(self, *arguments: str, **given: Any) -> list[Any]:
        """The lines of JSON that a command prints."""
        return [json.loads(line) for line in self.types(*arguments, **given).stdout.splitlines()]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def person(script: Script) -> Iterator[Person]:
    """A person in front of services that do as the script says."""
    ready, done = threading.Event(), asyncio.Event()
    found: list[Any] = []

    async def serve() -> None:
        async with scripted_services(script) as address:
            found.extend((asyncio.get_running_loop(), address))
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    loop, address = found
    yield Person(address)
    loop.call_soon_threadsafe(done.set)
    thread.join(30)


@pytest.fixture
def alone() -> Person:
    """A person without a stack."""
    return Person(f"127.0.0.1:{free_port()}")
