"""http_svc in this process, in front of services over real gRPC whose answers a test chooses."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest_asyncio

from http_svc.app import application
from http_svc.services import Services
from http_svc.serving import bind, serve
from http_svc.settings import HttpSettings
from tests.support.scripted_services import Script, scripted_services


class Door:
    """A client of the application, and what is behind it."""

    def __init__(self, client: httpx.AsyncClient, script: Script, address: str) -> None:
        self.client = client
        self.script = script
        self.address = address

    async def post(self, path: str, body: Any, status: int = 200, **headers: str) -> Any:
        """The JSON of an answer with this status."""
        answer = await self.client.post(path, json=body, headers=headers)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/json"
        return answer.json()

    async def refused(self, path: str, body: Any, status: int = 400) -> Any:
        """The error of an answer with this status."""
        error = (await self.post(path, body, status))["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    async def events(self, path: str, body: dict[str, Any]) -> list[tuple[str, Any]]:
        """Names and data of the events of a stream; the data is JSON or "[DONE]"."""
        answer = await self.client.post(path, json=body | {"stream": True})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/event-stream"
        found = []
        for block in answer.text.removesuffix("\n\n").split("\n\n"):
            name = ""
            for line in block.split("\n"):
                key, _, value = line.partition(": ")
                if key == "event":
                    name = value
                else:
                    assert key == "data"
                    found.append((name, value if value == "[DONE]" else json.loads(value)))
        return found


@pytest_asyncio.fixture
async def door() -> AsyncIterator[Door]:
    script = Script()
    async with scripted_services(script) as address:
        settings = HttpSettings(text_addr=address, model_mgmt_addr=address)
        async with Services(settings) as services:
            transport = httpx.ASGITransport(application(services))
            async with httpx.AsyncClient(transport=transport, base_url="http://door") as client:
                yield Door(client, script, address)


@contextlib.asynccontextmanager
async def served_with(door: Door, **limits: float) -> AsyncIterator[Door]:
    """The application over a socket, with other limits."""
    listening, stop = bind("127.0.0.1", 0), asyncio.Event()
    address = f"127.0.0.1:{listening.getsockname()[1]}"
    settings = HttpSettings.model_validate(
        {
            "text_addr": door.address,
            "model_mgmt_addr": door.address,
            "drain_seconds": 0,
            "grace_seconds": 1,
            **limits,
        }
    )
    serving = asyncio.create_task(serve(settings, listening, stop))
    async with httpx.AsyncClient(base_url=f"http://{address}") as client:
        yield Door(client, door.script, address)
    stop.set()
    await serving


@pytest_asyncio.fixture
async def served(door: Door) -> AsyncIterator[Door]:
    """The same over a socket, whose client can leave."""
    async with served_with(door, max_body_bytes=1 << 20, max_concurrent_calls=2) as one:
        yield one
