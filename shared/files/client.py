"""The client of GetModelFile: brings model files from a provider into a cache folder.

model_mgmt_svc uses it to read the application's model cache; text_svc and vision_svc use it to
read from model_mgmt_svc.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

import grpc

from ml import model_management_pb2_grpc
from ml.internal import store_pb2, store_pb2_grpc
from shared.errors import (
    InvalidArgumentError,
    ModelFileNotFoundError,
    ProviderUnavailableError,
    ServiceError,
)
from shared.files.cache import CacheEntry, cached_entries
from shared.files.chunk_memory import ChunkMemory
from shared.files.download import download
from shared.files.fetch import Fetch, FetchLimits
from shared.files.freshness import is_absent, is_unchanged
from shared.files.rate import RateLimit
from shared.files.reader import FileReader
from shared.files.space import CacheSpace, Use
from shared.files.stub import Source, StoreStub, Stub
from shared.model_ids import ModelId, check_file_path, folder_name, split_revision
from shared.rpc.channels import connect
from shared.single_flight import SingleFlight
from shared.telemetry.tracing import outgoing_metadata

log = logging.getLogger(__name__)

# Called on the event loop with the bytes fetched and the total bytes, 0 while unknown.
Progress = Callable[[int, int], None]

# Limits what is in flight at once. Left to itself, gRPC lets it grow to tens of MiB.
_CHANNEL_OPTIONS = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
)
# Between looks for what nobody needs.
SWEEP_SECONDS = 3600.0
# Files that a provider is asked about at once, and in one call of a service.
MAX_QUESTIONS = 8
MAX_NAMES = 1000
# What the message of a chunk has besides its data, at most.
CHUNK_FIELDS_BYTES = 1 << 10


@dataclass(frozen=True)
class Provided:
    """How far a file is that is brought into the cache, in bytes; its hash once it is there.

    `revision` as in `CachedFile`.
    """

    fetched: int
    total: int
    sha256: str = ""
    revision: str = ""


class ModelFiles:
    """Fetches files into `cache_dir`, each once for all callers, and keeps them.

    An async context manager; leaving it stops the fetches that are running (what they have
    written is kept for a later try).

    Args:
        address: "host:port" of the provider.
        cache_dir: the cache's folder; created if missing. Must not be the provider's own cache.
        limits: timeouts, retries and memory.
        space: makes room in the cache; by default with its default limit.
        serving: as of `connect`, of the provider.

    Attributes:
        space: see above.
        limits: see above.
        memory: of the chunks that are not on the disk yet.
    """

    def __init__(
        self,
        address: str,
        cache_dir: Path | str,
        *,
        limits: FetchLimits | None = None,
        space: CacheSpace | None = None,
        serving: str = "",
    ) -> None:
        self.cache_dir = Path(cache_dir)
        self._serving = serving
        self.space = space or CacheSpace(self.cache_dir)
        self._address = address
        self.limits = limits or FetchLimits()
        self.memory = ChunkMemory(self.limits.memory_bytes)
        self._rate = RateLimit(self.limits.bytes_per_second)
        self._fetches: SingleFlight[tuple[ModelId, PurePosixPath], Fetch] = SingleFlight()

    async def __aenter__(self) -> Self:
        largest = self.limits.chunk_bytes + CHUNK_FIELDS_BYTES
        options = (*_CHANNEL_OPTIONS, ("grpc.max_receive_message_length", largest))
        self._channel = connect(self._address, options=options, serving=self._serving)
        self._stub: Stub = model_management_pb2_grpc.ModelManagementServiceStub(self._channel)
        # A provider that is model_mgmt_svc, which has a store.
        ours = self._serving or self.space.store
        self._store: StoreStub | None = (
            store_pb2_grpc.ModelStoreStub(self._channel) if ours else None
        )
        self._source = Source(self._stub, self._store if self.space.store else None)
        self._sweeping = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sweeping.cancel()
        await self._fetches.close()
        await self._channel.close()

    def folder(self, model_id: ModelId) -> Path:
        """The folder for the files of a model; it need not exist."""
        return self.cache_dir / folder_name(model_id)

    async def fetch(
        self,
        model_id: ModelId,
        file_path: str,
        on_progress: Progress | None = None,
        *,
        goes_on: bool = False,
    ) -> Path:
        """Makes sure that the whole file is in the cache and returns its path there.

        A cached file is compared with its recorded hash and with what the provider has now; it is
        fetched again if it is damaged or has been republished.
        Cancelling the call stops the fetch unless other callers wait for it, or one of them has
        said that it `goes_on`.

        Raises:
            InvalidPathError: raised before the provider is asked.
            ModelFileNotFoundError: the provider has no such file.
            ProviderUnavailableError: it cannot be reached, or the connection broke repeatedly.
            ProviderFaultError: sizes, offsets or hashes contradict each other.
            ResourceExhaustedError: the disk is full, or the provider sends too large chunks.
            InternalError: the cache cannot be written.
        """
        self._entry(model_id, file_path)  # before there is a folder for it
        with contextlib.closing(await self.use(model_id)):
            return await self._fetch(model_id, file_path, on_progress, goes_on=goes_on)

    async def _fetch(
        self, model_id: ModelId, file_path: str, on_progress: Progress | None, *, goes_on: bool
    ) -> Path:
        with self._join(model_id, file_path, goes_on=goes_on) as fetch:
            while not fetch.task.done():
                if on_progress:
                    on_progress(fetch.written, fetch.total_size)
                await fetch.changed()
            file = fetch.result()
            if on_progress:
                on_progress(file.size, file.size)
            return file.path

    async def use(self, model_id: ModelId) -> Use:
        """Keeps what the cache has of a model from being removed to make room for others.

        Raises:
            InternalError: the cache cannot be written.
        """
        return await asyncio.to_thread(self.space.use, model_id)

    async def _sweep(self) -> None:
        """Removes leftovers now and every hour."""
        while True:
            try:
                await asyncio.to_thread(self.space.sweep)
            except ServiceError as error:
                log.warning("cannot clean the model cache", extra={"error": error.message})
            await asyncio.sleep(SWEEP_SECONDS)

    async def refresh(self, model_id: ModelId) -> None:
        """Brings the cached files of a model up to date with the provider.

        Changed files are fetched, files that the provider no longer has are removed. If it cannot
        be asked, nothing changes.

        Raises:
            As `fetch`.
        """
        entries = await asyncio.to_thread(cached_entries, self.cache_dir, model_id, self.space)

        async def is_stale(entry: CacheEntry) -> bool:
            file = await asyncio.to_thread(entry.find)
            seconds = self.limits.first_chunk_seconds
            return not file or not await is_unchanged(self._stub, entry, file, seconds)

        stale = await _answers(entries, is_stale)
        if None in stale:
            log.info("cannot check for updates; using the cached files", extra={"model": model_id})
            return
        for entry in itertools.compress(entries, stale):
            with contextlib.suppress(ModelFileNotFoundError):
                await self.fetch(model_id, str(entry.file_path))

    async def absent(self, model_id: ModelId, file_paths: Iterable[str]) -> set[str]:
        """Those of some files that are not cached, and that the provider says it does not have.

        Cheaper than `fetch` of each. None where that cannot be found out: `fetch` tells why.

        Raises:
            InvalidPathError, InvalidArgumentError: one of the paths, or there are over MAX_NAMES.
        """
        entries = [self._entry(model_id, path) for path in file_paths]
        if len(entries) > MAX_NAMES:
            raise InvalidArgumentError(
                f"{len(entries)} files are asked for, of at most {MAX_NAMES}"
            )

        def unknown() -> list[CacheEntry]:
            return [entry for entry in entries if not entry.find()]

        entries = await asyncio.to_thread(unknown)
        if not entries:
            return set()
        if self._store:
            return await self._absent_in_store(self._store, model_id, entries)

        async def asked(entry: CacheEntry) -> bool:
            return await is_absent(self._stub, entry, self.limits.first_chunk_seconds)

        answers = await _answers(entries, asked)
        return {str(entry.file_path) for entry in itertools.compress(entries, answers)}

    async def _absent_in_store(
        self, store: StoreStub, model_id: ModelId, entries: Iterable[CacheEntry]
    ) -> set[str]:
        names = {str(entry.file_path) for entry in entries}
        plain, revision = split_revision(model_id)
        request = store_pb2.AbsentRequest(model_id=plain, file_paths=names, revision=revision)
        try:
            async with asyncio.timeout(self.limits.first_chunk_seconds):
                answer = await store.Absent(request, metadata=outgoing_metadata())
        except (TimeoutError, grpc.aio.AioRpcError):  # an older one, too
            return set()
        return names.intersection(answer.file_paths)

    async def has(self, model_id: ModelId, file_path: str) -> bool:
        """Whether the provider has a file. What arrives of it meanwhile is kept for a later fetch.

        Raises:
            As `fetch`.
        """
        try:
            async with self.open(model_id, file_path):
                return True
        except ModelFileNotFoundError:
            return False

    async def is_confirmed(self, model_id: ModelId) -> bool:
        """Whether the provider has confirmed the revision of all cached files of a model.

        True where the id names no revision, see `at_revision`.
        """
        _, revision = split_revision(model_id)
        if not revision:
            return True

        def confirmed() -> bool:
            found = (entry.find() for entry in cached_entries(self.cache_dir, model_id))
            return all(file.revision for file in found if file)

        return await asyncio.to_thread(confirmed)

    @contextlib.asynccontextmanager
    async def open(self, model_id: ModelId, file_path: str) -> AsyncIterator[FileReader]:
        """A reader of the file, at once, even while the file is being fetched.

        A cached file is not compared with what the provider has.

        Raises:
            As `fetch`, here or while reading.
        """
        entry = self._entry(model_id, file_path)
        with contextlib.closing(await self.use(model_id)):
            async with self._open(entry) as reader:
                yield reader

    @contextlib.asynccontextmanager
    async def _open(self, entry: CacheEntry) -> AsyncIterator[FileReader]:
        if file := await asyncio.to_thread(entry.find):
            async with FileReader(file, entry) as reader:
                yield reader
            return
        with self._join(entry.model_id, str(entry.file_path)) as fetch:
            while fetch.part is None and not fetch.task.done():
                await fetch.changed()
            source = fetch.result() if fetch.task.done() else fetch
            async with FileReader(source, entry) as reader:
                yield reader

    async def provide(self, model_id: ModelId, file_path: str) -> AsyncGenerator[Provided]:
        """Brings a file into the cache for a service that links it from there.

        Yields how far it is; the last one has the hash. As in `open`, a cached file is not
        compared with what the provider has.

        Raises:
            As `fetch`.
        """
        entry = self._entry(model_id, file_path)
        with contextlib.closing(await self.use(model_id)):
            file = await asyncio.to_thread(entry.find)
            if not file:
                with self._join(model_id, file_path) as fetch:
                    told = None
                    while not fetch.task.done():
                        step = Provided(fetch.written, fetch.total_size)
                        if step == told:
                            await fetch.changed()
                        else:  # what changes meanwhile is seen in the next round
                            told = step
                            yield step
                    file = fetch.result()
            await asyncio.to_thread(entry.share, file)
            yield Provided(file.size, file.size, file.sha256, file.revision)

    def _entry(self, model_id: ModelId, file_path: str) -> CacheEntry:
        return CacheEntry(self.cache_dir, model_id, check_file_path(file_path), self.space)

    def _join(
        self, model_id: ModelId, file_path: str, *, goes_on: bool = False
    ) -> AbstractContextManager[Fetch]:
        """The one fetch of a file, see `SingleFlight.join`."""
        entry = self._entry(model_id, file_path)

        def start() -> Fetch:
            fetch = Fetch(entry.model_id, entry.file_path)
            fetch.task = asyncio.create_task(
                download(self._source, entry, self.limits, self.memory, self._rate, fetch)
            )
            return fetch

        return self._fetches.join((entry.model_id, entry.file_path), start, goes_on=goes_on)


async def _answers(
    entries: Iterable[CacheEntry], ask: Callable[[CacheEntry], Awaitable[bool]]
) -> list[bool | None]:
    """Asks a provider about files, a few at once.

    None for one that it cannot be asked about now, and for all whose turn comes after that: each
    could take as long.
    """
    questions = asyncio.Semaphore(MAX_QUESTIONS)
    available = True

    async def answer(entry: CacheEntry) -> bool | None:
        nonlocal available
        async with questions:
            if not available:
                return None
            try:
                return await ask(entry)
            except ProviderUnavailableError as error:
                if available:
                    extra = {"file": str(entry.file_path), "error": error.message}
                    log.info("the provider cannot be asked about files", extra=extra)
                available = False
                return None

    return await asyncio.gather(*map(answer, entries))
