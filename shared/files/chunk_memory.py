"""Memory for chunks that are being received or wait for the disk, shared by all fetches."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Self

# Expected of the first chunk of a call: what the application's provider sends, and some.
FIRST_CHUNK_BYTES = 128 << 10


class ChunkMemory:
    """A number of bytes. Calls that need more than are free wait, in order of arrival.

    Args:
        limit: bytes that all fetches together may hold.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    def share(self) -> ChunkShare:
        """The part of one call, empty at first."""
        return ChunkShare(self)

    async def take(self, size: int) -> None:
        """Waits for free bytes; one that needs more than there are gets them when none are held."""
        if not self._waiting and self._fits(size):
            self._held += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = size, turn
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size)
            else:
                if entry in self._waiting:  # `_wake` may have passed over it
                    self._waiting.remove(entry)
                self._wake()
            raise

    def give(self, size: int) -> None:
        """Returns bytes; a negative number takes them without waiting."""
        self._held -= size
        self._wake()

    def _fits(self, size: int) -> bool:
        return not self._held or self._held + size <= self._limit

    def _wake(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._held += size
                turn.set_result(None)


class ChunkShare:
    """What one call holds of the memory. A context manager that returns all of it.

    A chunk has its bytes from before it is received until it is on the disk. Its size is not known
    before: it is taken to be that of the largest so far. A larger one holds what it has once it is
    there, and others receive less until it is written.
    """

    def __init__(self, memory: ChunkMemory) -> None:
        self._memory = memory
        self._held = 0
        self._largest = FIRST_CHUNK_BYTES
        self._expected = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.written(self._held)

    async def expect(self) -> None:
        """Waits for the memory of the next chunk."""
        await self._memory.take(self._largest)
        self._expected = self._largest
        self._held += self._expected

    def received(self, size: int) -> None:
        """The chunk that was expected has this size."""
        self._largest = max(self._largest, size)
        self.written(self._expected - size)
        self._expected = 0

    def written(self, size: int) -> None:
        """As many bytes are on the disk."""
        self._held -= size
        self._memory.give(size)
