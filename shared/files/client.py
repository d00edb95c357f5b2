"""The client of GetModelFile: files of models from a provider into a cache folder.

model_mgmt_svc uses it towards the application's model cache, the workers towards model_mgmt_svc.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Self

from ml import model_management_pb2_grpc
from shared.errors import ModelFileNotFoundError, ProviderUnavailableError, UnavailableError
from shared.files.cache import (
    CachedFile,
    CacheEntry,
    cached_entries,
)
from shared.files.disk import disk_errors
from shared.files.download import download
from shared.files.fetch import (
    Fetch,
    FetchLimits,
)
from shared.files.freshness import is_unchanged
from shared.files.stub import Stub
from shared.model_ids import check_file_path, folder_name, parse_model_id
from shared.rpc.channels import connect
from shared.single_flight import SingleFlight

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

log = logging.getLogger(__name__)

# Called on the event loop with the bytes fetched and the bytes in all, 0 while unknown.
Progress = Callable[[int, int], None]

# Ten of the chunks that the wire usually has.
READ_BYTES = 1_024_000
# What may be on its way at once. Left to itself, gRPC lets it grow to tens of MiB.
_CHANNEL_OPTIONS = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
)


class ModelFiles:
    """Fetches files into `cache_dir`, each once however many ask, and keeps them.

    An async context manager; leaving it ends what is under way (what was written is kept for a
    later try).

    Args:
        address: "host:port" of the provider.
        cache_dir: the cache's folder; made when missing. Not the provider's own.
        limits: waiting times and tries.
    """

    def __init__(
        self, address: str, cache_dir: Path | str, *, limits: FetchLimits | None = None
    ) -> None:
        self.cache_dir = Path(cache_dir)
        self._address = address
        self._limits = limits or FetchLimits()
        self._fetches: SingleFlight[tuple[str, PurePosixPath], Fetch] = SingleFlight()

    async def __aenter__(self) -> Self:
        self._channel = connect(self._address, options=_CHANNEL_OPTIONS)
        self._stub: Stub = model_management_pb2_grpc.ModelManagementServiceStub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._fetches.close()
        await self._channel.close()

    def folder(self, model_id: str) -> Path:
        """The folder that holds the files of a model; it need not exist."""
        return self.cache_dir / folder_name(parse_model_id(model_id))

    async def fetch(
        self, model_id: str, file_path: str, on_progress: Progress | None = None
    ) -> Path:
        """Makes sure that the file is whole in the cache and returns its place there.

        A cached file is read and compared with its recorded hash, and with what the provider has
        now; a damaged one is fetched again, and one that was published anew.
        Cancelling the call ends the fetch unless others wait for it.

        Raises:
            InvalidModelIdError, InvalidPathError: nothing was asked of the provider.
            ModelFileNotFoundError: the provider has no such file.
            ProviderUnavailableError: it cannot be reached, or went away and stayed away.
            ProviderFaultError: sizes, offsets or hash do not agree.
            ResourceExhaustedError: the disk is full.
            InternalError: the cache cannot be written.
        """
        with self._join(model_id, file_path) as fetch:
            while not fetch.task.done():
                if on_progress:
                    on_progress(fetch.written, fetch.total_size)
                await fetch.changed()
            file = fetch.result()
            if on_progress:
                on_progress(file.size, file.size)
            return file.path

    async def refresh(self, model_id: str) -> None:
        """Makes the cached files of a model those that the provider has now.

        What it has changed is fetched, what it has no more is removed. One that cannot be asked
        changes nothing.

        Raises:
            As `fetch`.
        """
        for entry in await asyncio.to_thread(cached_entries, self.cache_dir, model_id):
            file = await asyncio.to_thread(entry.find)
            seconds = self._limits.first_chunk_seconds
            try:
                if not file or await is_unchanged(self._stub, entry, file, seconds):
                    continue
            except ProviderUnavailableError as error:
                log.info("cached files are used as they are", extra={"error": error.message})
                return
            with contextlib.suppress(ModelFileNotFoundError):
                await self.fetch(model_id, str(entry.file_path))

    @contextlib.asynccontextmanager
    async def open(self, model_id: str, file_path: str) -> AsyncIterator[FileReader]:
        """A reader of the file, at once, even while the file is still on its way.

        A cached one is not compared with what the provider has.

        Raises:
            As `fetch`, here or while reading.
        """
        entry = self._entry(model_id, file_path)
        if file := await asyncio.to_thread(entry.find):
            async with FileReader(file, entry) as reader:
                yield reader
            return
        with self._join(model_id, file_path) as fetch:
            while fetch.part is None and not fetch.task.done():
                await fetch.changed()
            source = fetch.result() if fetch.task.done() else fetch
            async with FileReader(source, entry) as reader:
                yield reader

    def _entry(self, model_id: str, file_path: str) -> CacheEntry:
        return CacheEntry(self.cache_dir, parse_model_id(model_id), check_file_path(file_path))

    def _join(self, model_id: str, file_path: str) -> AbstractContextManager[Fetch]:
        """The one fetch of a file, which ends when nobody is left in it."""
        entry = self._entry(model_id, file_path)

        def start() -> Fetch:
            fetch = Fetch(entry.model_id, entry.file_path)
            fetch.task = asyncio.create_task(download(self._stub, entry, self._limits, fetch))
            return fetch

        return self._fetches.join((entry.model_id, entry.file_path), start)


class FileReader:
    """Reads one file in order, following it while it is written; an async context manager.

    Attributes:
        total_size: of the whole file in bytes.
        sha256: of the whole file, "" while it is not known.
    """

    def __init__(self, source: CachedFile | Fetch, entry: CacheEntry) -> None:
        # A fetch is read through its part, which knows whether it is renamed by now.
        opened = source.part if isinstance(source, Fetch) else source
        if opened is None:
            raise RuntimeError("a fetch has no part before its size is known")
        self._opened = opened
        self._entry = entry
        self._fetch = source if isinstance(source, Fetch) else None
        self._restarts = self._fetch.restarts if self._fetch else 0
        self.total_size = source.total_size if isinstance(source, Fetch) else source.size
        self.sha256 = source.sha256

    async def __aenter__(self) -> Self:
        self._file = await asyncio.to_thread(self._opened.open_reader)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._file.close()

    async def whole_sha256(self) -> str:
        """The file's hash; where the provider does not tell it, once the file is whole.

        Raises:
            As `blocks`.
        """
        if self._fetch and not self.sha256:
            file = await self._fetch.finished()
            if self._fetch.restarts != self._restarts:
                raise UnavailableError("the file changed at its source while it was read")
            return file.sha256
        return self.sha256

    async def blocks(self, offset: int = 0) -> AsyncIterator[memoryview]:
        """The bytes from `offset` to the end, in blocks of READ_BYTES at most.

        They share one buffer: each is valid until the next is asked for.

        The block that ends the file comes once the file is known to be whole and, when it is read
        from its beginning, right.

        Raises:
            UnavailableError: the file changed at its source half-way, or the cached one was
                damaged; asking again helps.
            As `ModelFiles.fetch`.
        """
        # A fetch checks the hash itself; the receiver of the rest of a file has its beginning.
        digest = hashlib.sha256() if self._fetch is None and offset == 0 else None
        # One buffer for all: blocks of their own would leave holes in the allocator's arenas.
        buffer = memoryview(bytearray(min(READ_BYTES, self.total_size)))
        while offset < self.total_size:
            end = min(await self._available(offset), offset + READ_BYTES)
            block = await asyncio.to_thread(self._read, offset, buffer[: end - offset], digest)
            if not block or (self._fetch and self._fetch.restarts != self._restarts):
                raise UnavailableError("the file changed at its source while it was read")
            offset += len(block)
            if digest and offset == self.total_size and digest.hexdigest() != self.sha256:
                await asyncio.to_thread(self._entry.discard)
                raise UnavailableError(
                    "the cached file was damaged and is fetched again when asked"
                )
            yield block

    async def _available(self, offset: int) -> int:
        """How far the file can be read, once there is something at `offset`."""
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

    def _read(self, offset: int, buffer: memoryview, digest: Hash | None) -> memoryview:
        with disk_errors():
            block = buffer[: os.preadv(self._file.fileno(), [buffer], offset)]
        if digest:
            digest.update(block)
        return block
