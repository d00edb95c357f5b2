"""From a stream to the disk: what comes during a write makes the next one."""

from __future__ import annotations

import asyncio
from typing import Self

from shared.files.cache import PartFile
from shared.files.fetch import Fetch

# What waits in memory for the disk; the provider is held back beyond it.
MAX_UNWRITTEN_BYTES = 1 << 20


class Writer:
    """Writes to a part behind the stream, and tells its fetch how far. An async context manager."""

    def __init__(self, part: PartFile, fetch: Fetch) -> None:
        self._part = part
        self._fetch = fetch
        self._blocks: list[bytes] = []
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task:
            await self._task

    async def put(self, block: bytes) -> None:
        """Hands a block over; waits for the disk when too much is unwritten."""
        self._blocks.append(block)
        self._bytes += len(block)
        if self._task and (self._task.done() or self._bytes > MAX_UNWRITTEN_BYTES):
            await self._task
            self._task = None
        if self._task is None and self._blocks:
            self._task = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while self._blocks:
            blocks, self._blocks, self._bytes = self._blocks, [], 0
            await asyncio.to_thread(self._part.append, blocks)
            self._fetch.written = self._part.written
            self._fetch.announce()
