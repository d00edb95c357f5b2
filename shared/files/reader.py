"""Reading a file in order, also while it is still being fetched."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Self

from shared.errors import UnavailableError
from shared.files.cache import CachedFile, CacheEntry
from shared.files.disk import disk_errors
from shared.files.fetch import Fetch

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

# Read at once: at first one chunk as the application's provider sends them, and five of these once
# the reader has taken some MiB. One that stops with Envoy's buffers full costs little memory: two
# of these, since the next is read, and added to the hash, while the last is sent.
FIRST_READ_BYTES = 102_400
READ_BYTES = 5 * FIRST_READ_BYTES
LARGE_READS_AFTER_BYTES = 4 << 20


class FileReader:
    """Reads one file from start to end, at the writer's pace if need be. An async context manager.

    Attributes:
        total_size: size of the whole file in bytes.
        sha256: of the whole file, "" while it is not known.
        revision: as the provider has confirmed it, see `CachedFile`.
    """

    def __init__(self, source: CachedFile | Fetch, entry: CacheEntry) -> None:
        # A fetch is read through its part, which knows whether it has been renamed.
        opened = source.part if isinstance(source, Fetch) else source
        if opened is None:
            raise RuntimeError("a fetch has no part before its size is known")
        self._opened = opened
        self._entry = entry
        self._fetch = source if isinstance(source, Fetch) else None
        self._restarts = self._fetch.restarts if self._fetch else 0
        self.total_size = source.total_size if isinstance(source, Fetch) else source.size
        self.sha256 = source.sha256
        self.revision = source.revision

    async def __aenter__(self) -> Self:
        self._file = await asyncio.to_thread(self._opened.open_reader)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._file.close()

    async def whole_sha256(self) -> str:
        """The file's SHA-256. If the provider does not send it, waits until the file is whole.

        Raises:
            As `blocks`.
        """
        if self._fetch and not self.sha256:
            file = await self._fetch.finished()
            if self._fetch.restarts != self._restarts:
                raise _changed()
            return file.sha256
        return self.sha256

    async def blocks(self, offset: int = 0) -> AsyncGenerator[memoryview]:
        """The bytes from `offset` to the end, in blocks of at most READ_BYTES.

        All blocks share two buffers: each is valid until the next one is requested.

        The block that ends the file comes once the file is known to be whole and, if it is read
        from the beginning, to have the right hash.

        Raises:
            UnavailableError: the file changed at its source while it was read, or the cached one
                was damaged; asking again helps.
            As `ModelFiles.fetch`.
        """
        # A fetch checks the hash itself; a caller that reads the rest of a file has its beginning.
        digest = hashlib.sha256() if self._fetch is None and offset == 0 else None
        # Two buffers for all: separate blocks would leave holes in the allocator's arenas.
        buffers = _buffers(min(FIRST_READ_BYTES, self.total_size))
        first = offset
        ahead: asyncio.Future[memoryview] | None = None
        try:
            while offset < self.total_size:
                if offset - first >= LARGE_READS_AFTER_BYTES and len(buffers[0]) < READ_BYTES:
                    buffers[0] = memoryview(bytearray(READ_BYTES))
                if ahead is None:
                    end = min(await self._available(offset), offset + len(buffers[0]))
                    ahead = self._begin(offset, buffers[0][: end - offset], digest)
                block = await ahead
                ahead = None
                if not block or (self._fetch and self._fetch.restarts != self._restarts):
                    raise _changed()
                offset += len(block)
                buffers.reverse()
                if self._fetch is None and offset < self.total_size:
                    end = min(self.total_size, offset + len(buffers[0]))
                    ahead = self._begin(offset, buffers[0][: end - offset], digest)
                if digest and offset == self.total_size and digest.hexdigest() != self.sha256:
                    await asyncio.to_thread(self._entry.set_aside, self.sha256, digest.hexdigest())
                    raise UnavailableError("the cached file was damaged and will be fetched again")
                yield block
        finally:
            if ahead:
                await asyncio.wait({ahead})  # it reads from the file, which is closed next

    async def _available(self, offset: int) -> int:
        """How far the file can be read, once there is something to read at `offset`."""
        fetch = self._fetch
        if fetch is None:
            return self.total_size
        while not fetch.task.done() and fetch.restarts == self._restarts:
            # The last byte is held back until the hash is known to be right.
            readable = min(fetch.written, self.total_size - 1)
            if readable > offset:
                return readable
            await fetch.changed()
        if fetch.task.done():
            fetch.result()
        return self.total_size

    def _begin(
        self, offset: int, buffer: memoryview, digest: Hash | None
    ) -> asyncio.Future[memoryview]:
        """Begins to read, in a thread."""
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(None, self._read, offset, buffer, digest)

    def _read(self, offset: int, buffer: memoryview, digest: Hash | None) -> memoryview:
        with disk_errors():
            block = buffer[: os.preadv(self._file.fileno(), [buffer], offset)]
        if digest:
            digest.update(block)
        return block


def _buffers(size: int) -> list[memoryview]:
    return [memoryview(bytearray(size)), memoryview(bytearray(size))]


def _changed() -> UnavailableError:
    return UnavailableError("the file changed at its source while it was read")
