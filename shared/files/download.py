"""Downloading one file from a provider to the disk: streamed, checked, resumed, retried.

`_Download` repeats the call until the file is whole. What it does after each failure:

    Failure                                         Then
    ----------------------------------------------  ---------------------------------------------
    connection lost; provider unreachable, silent,  wait, then resume after the last written byte;
    at its limits, or its call broke                after `FetchLimits.attempts` of these in a row
                                                    without a new byte: give up, but on a provider
                                                    that is down or full not before
                                                    `FetchLimits.patience_seconds`; a new byte in
                                                    the store counts, too
    the provider rejects the offset, or its size    restart at offset 0
    or hash is not that of the part
    wrong hash of a file that was resumed           restart at offset 0
    wrong hash of a file received from offset 0     keep it aside, give up
    restarted MAX_STARTS times                      give up
    sizes or offsets contradict each other          give up
    no such file, too large a chunk, any other      give up
    status

What is written is kept for the next call if the provider was unavailable or the fetch was
cancelled; in the other cases it is removed.

Nothing is received of a file whose content is on the disk already: another model in the cache has
it, by the hash in the first chunk, or model_mgmt_svc, which says so with its hash (`_take`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator
from typing import Self

import grpc

from ml.internal import store_pb2
from shared.errors import (
    DeadlineExceededError,
    ModelFileNotFoundError,
    ProviderFaultError,
    ProviderUnavailableError,
    QueueFullError,
    ResourceExhaustedError,
    ServiceError,
    UnavailableError,
)
from shared.files.cache import (
    CachedFile,
    CacheEntry,
    HashMismatchError,
    PartFile,
    SourceVersion,
)
from shared.files.chunk_memory import ChunkMemory, ChunkShare
from shared.files.fetch import Fetch, FetchLimits
from shared.files.freshness import is_unchanged
from shared.files.rate import RateLimit
from shared.files.stub import Call, Chunk, Source, Stub, provide_request_of, request_of
from shared.model_ids import MAX_REVISION_CHARS
from shared.rpc.status import from_details
from shared.telemetry.tracing import outgoing_metadata

log = logging.getLogger(__name__)

# Between attempts to lock a part that another process holds.
LOCK_POLL_SECONDS = 0.1
# Bytes in memory that wait for the disk; beyond this, reading from the provider pauses.
MAX_UNWRITTEN_BYTES = 1 << 20
# Most starts at offset 0 before the provider is considered faulty.
MAX_STARTS = 8
# Codes of a provider that is down, of a broken call, and of an offset that it rejects.
_DOWN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
)
_BROKEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)
_BAD_REQUEST = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
# In the details of the status that gRPC itself gives for a message over the channel's limit.
_TOO_LARGE = "larger than max"


class _InterruptedError(Exception):
    """The stream broke in a way that a retry may fix.

    Attributes:
        final: is raised when retries run out.
        down: whether the provider is down or full, and may come back as it was.
    """

    def __init__(self, final: ServiceError, *, down: bool = True) -> None:
        super().__init__(final.message)
        self.final = final
        self.down = down


class _StartOverError(Exception):
    """What is written belongs to other content than the provider has now."""


async def download(
    source: Source,
    entry: CacheEntry,
    limits: FetchLimits,
    memory: ChunkMemory,
    rate: RateLimit,
    fetch: Fetch,
) -> CachedFile:
    """Brings a file into the cache unless the cached one is undamaged and up to date.

    Raises:
        As `ModelFiles.fetch`.
    """
    old = await asyncio.to_thread(entry.verify)
    if old and await _is_current(source.files, entry, old, limits):
        return old
    part = await _lock_part(entry)
    keep = False
    try:
        # Another process may have finished it while this one waited for the lock.
        file = await asyncio.to_thread(entry.verify)
        if file and (old is None or file.sha256 != old.sha256):
            return file
        return await _Download(source, entry, part, limits, memory, rate, fetch).run()
    except ModelFileNotFoundError:
        if old:
            await asyncio.to_thread(entry.discard)
        raise
    except (UnavailableError, asyncio.CancelledError):
        keep = True
        raise
    finally:
        # Shielded: a second cancellation must not leave the lock behind.
        await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(part.close, keep)))


async def _is_current(stub: Stub, entry: CacheEntry, old: CachedFile, limits: FetchLimits) -> bool:
    """Whether a cached file is still the provider's; assumed while it cannot be asked."""
    try:
        return await is_unchanged(stub, entry, old, limits.first_chunk_seconds)
    except ProviderUnavailableError as error:
        extra = {"file": str(entry.file_path), "model": entry.model_id, "error": error.message}
        log.info("cannot check for updates; using the cached file", extra=extra)
        return True


async def _lock_part(entry: CacheEntry) -> PartFile:
    """The part, once no other process and no cancelled fetch of this one holds it."""
    while True:
        opening = asyncio.ensure_future(asyncio.to_thread(entry.open_part))
        try:
            part = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_late)
            raise
        if part:
            return part
        await asyncio.sleep(LOCK_POLL_SECONDS)


def _close_late(opening: asyncio.Future[PartFile | None]) -> None:
    """Closes a part that a thread opened for a fetch that has been cancelled."""
    if not opening.cancelled() and not opening.exception() and (part := opening.result()):
        asyncio.get_running_loop().run_in_executor(None, part.close)


class _Download:
    """Repeats the call until the file is whole or the table above says to give up."""

    def __init__(
        self,
        source: Source,
        entry: CacheEntry,
        part: PartFile,
        limits: FetchLimits,
        memory: ChunkMemory,
        rate: RateLimit,
        fetch: Fetch,
    ) -> None:
        self._stub = source.files
        self._store = source.store
        self._entry = entry
        self._part = part
        self._limits = limits
        self._memory = memory
        self._rate = rate
        self._fetch = fetch
        self._provided = 0  # the most bytes that the store has told of

    async def run(self) -> CachedFile:
        failures = starts = provided = 0
        failing_since = 0.0
        offset = self._part.written
        while starts < MAX_STARTS:
            try:
                if file := await self._take():
                    return file
                starts += offset == 0
                return await self._stream(offset) or await self._finish()
            except _StartOverError:
                offset = 0
            except _InterruptedError as error:
                came = self._part.written > offset or self._provided > provided
                failures, provided = 1 if came else failures + 1, self._provided
                now = time.monotonic()
                failing_since = now if failures == 1 else failing_since
                if self._gives_up(error, failures, now - failing_since):
                    raise error.final from error
                offset = self._part.written
                await self._back_off(failures, error)
        raise self._fault(f"restarted {MAX_STARTS} times")

    async def _finish(self) -> CachedFile:
        try:
            return await asyncio.to_thread(self._part.finish)
        except HashMismatchError:
            if self._part.resumed:  # the beginning may be of an earlier version
                raise _StartOverError from None
            raise self._fault(
                "its SHA-256 is not the announced one; what came is kept aside"
            ) from None

    def _gives_up(self, error: _InterruptedError, failures: int, seconds: float) -> bool:
        patient = error.down and seconds < self._limits.patience_seconds
        return failures >= self._limits.attempts and not patient

    async def _back_off(self, failures: int, error: _InterruptedError) -> None:
        wait = self._limits.backoff_seconds * 2.0 ** (failures - 1)
        wait = min(wait, self._limits.max_backoff_seconds) * random.uniform(0.5, 1.0)  # noqa: S311
        log.warning(
            "fetch interrupted, trying again",
            extra={
                "file": str(self._fetch),
                "offset": self._part.written,
                "error": error.final.message,
                "wait_seconds": round(wait, 2),
            },
        )
        await asyncio.sleep(wait)

    async def _take(self) -> CachedFile | None:
        """The file from the store on this machine; None if it is to be received."""
        space = self._entry.space
        fetch = self._fetch
        if self._store is None or space is None or space.store is None or fetch.part:
            return None
        call = self._store.Provide(
            provide_request_of(fetch.model_id, fetch.file_path), metadata=outgoing_metadata()
        )
        seconds = self._limits.first_chunk_seconds
        try:
            while True:
                async with self._deadline(seconds):
                    answer = await call.read()
                if not isinstance(answer, store_pb2.ProvideResponse):
                    raise self._fault("it ended without a hash")
                seconds = self._limits.stall_seconds
                fetch.written, fetch.total_size = answer.bytes_fetched, answer.bytes_total
                self._provided = max(self._provided, answer.bytes_fetched)
                fetch.announce()
                if answer.sha256:
                    break
            revision = answer.revision[:MAX_REVISION_CHARS]
            file = await asyncio.to_thread(
                self._entry.adopt, space.store, answer.sha256, answer.bytes_total, revision
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise self._failure(error, 0) from error
            file = None  # an older one
        finally:
            call.cancel()
        if file is None:
            log.info("a file cannot be linked from the store", extra={"file": str(fetch)})
            self._store = None
            fetch.written = 0
        return file

    async def _stream(self, offset: int) -> CachedFile | None:
        """One call: receives everything from `offset` to the end.

        Returns the file if it was on the disk already.
        """
        fetch = self._fetch
        call = self._stub.GetModelFile(
            request_of(fetch.model_id, fetch.file_path, offset), metadata=outgoing_metadata()
        )
        try:
            with self._memory.share() as share:
                chunk = await self._read(call, share, offset, self._limits.first_chunk_seconds)
                if file := await self._adopt(chunk):
                    return file
                position = await self._begin(chunk, offset)
                async with _Writer(self._part, fetch, share) as writer:
                    while True:
                        position = self._check(chunk, position)
                        data, is_last = chunk.data, chunk.is_last
                        del chunk  # it has a copy of the data
                        await writer.put(data)
                        if is_last:
                            return None
                        await self._rate.take(len(data))
                        del data
                        chunk = await self._read_more(call, share, position)
        finally:
            call.cancel()

    async def _adopt(self, first: Chunk) -> CachedFile | None:
        """The file, if another model has its content."""
        space = self._entry.space
        if not first.sha256 or space is None or self._fetch.part:
            return None
        return await asyncio.to_thread(
            self._entry.adopt,
            space.blobs,
            first.sha256,
            first.total_size,
            first.revision[:MAX_REVISION_CHARS],
        )

    async def _begin(self, first: Chunk, asked: int) -> int:
        """Prepares the part for what the first chunk announces; returns where writing starts."""
        fetch = self._fetch
        source = SourceVersion(first.total_size, first.sha256, first.revision[:MAX_REVISION_CHARS])
        if first.offset not in (0, asked) or first.total_size < 0:
            raise self._fault(
                f"asked for offset {asked}, it began at {first.offset} of {first.total_size} bytes"
            )
        known = self._part.source
        if first.offset and known and not source.agrees_with(known):
            raise _StartOverError
        if first.offset == 0 and fetch.part is not None and fetch.written:
            # Before the content changes: readers compare this after each read.
            fetch.restarts += 1
            fetch.part = None
        await asyncio.to_thread(self._part.begin, source, first.offset)
        fetch.total_size = source.total_size
        fetch.sha256 = source.sha256
        fetch.revision = source.revision
        fetch.written = self._part.written
        fetch.part = self._part
        fetch.announce()
        return first.offset

    def _check(self, chunk: Chunk, position: int) -> int:
        """Checks that a chunk fits at `position`; returns where the next one must begin."""
        total = self._fetch.total_size
        end = position + len(chunk.data)
        if chunk.total_size != total:
            raise self._fault(f"total_size changed from {total} to {chunk.total_size}")
        if chunk.offset != position:
            raise self._fault(f"a chunk has offset {chunk.offset} instead of {position}")
        if end > total:
            raise self._fault(f"it has at least {end} bytes instead of {total}")
        if chunk.is_last and end < total:
            raise self._fault(f"the last chunk ends at {end} of {total} bytes")
        return end

    async def _read_more(self, call: Call, share: ChunkShare, position: int) -> Chunk:
        """The next chunk with data or the end; empty ones do not prove that there is progress."""
        await share.expect()
        async with self._deadline(self._limits.stall_seconds):
            while True:
                chunk = await self._next(call, position)
                if chunk.data or chunk.is_last:
                    share.received(len(chunk.data))
                    return chunk
                self._check(chunk, position)

    async def _read(self, call: Call, share: ChunkShare, offset: int, seconds: float) -> Chunk:
        await share.expect()
        async with self._deadline(seconds):
            chunk = await self._next(call, offset)
            share.received(len(chunk.data))
            return chunk

    @contextlib.asynccontextmanager
    async def _deadline(self, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            message = f"the file provider sent nothing of {self._fetch} for {seconds:g} s"
            raise _InterruptedError(ProviderUnavailableError(message)) from None

    async def _next(self, call: Call, position: int) -> Chunk:
        try:
            chunk = await call.read()
        except grpc.aio.AioRpcError as error:
            raise self._failure(error, position) from error
        if isinstance(chunk, Chunk):
            return chunk
        raise self._fault(f"it ended at {position} bytes without a last chunk")

    def _failure(self, error: grpc.aio.AioRpcError, position: int) -> Exception:
        """What a status of the provider means for this fetch."""
        code, ours, fetch = error.code(), from_details(error), self._fetch
        if code in _BAD_REQUEST and position:
            return _StartOverError()
        if isinstance(ours, UnavailableError) and not isinstance(ours, ProviderUnavailableError):
            return _InterruptedError(ProviderUnavailableError(ours.message))
        if isinstance(ours, QueueFullError | DeadlineExceededError):
            return _InterruptedError(ours)  # its streams are taken, or it did not wait for us
        if ours:
            return ours  # the service that raised it has made its own retries
        if code is grpc.StatusCode.NOT_FOUND:
            return ModelFileNotFoundError(f"the file provider has no file {fetch}")
        if code in _DOWN:
            return _InterruptedError(ProviderUnavailableError("the file provider is not reachable"))
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            limit = self._limits.chunk_bytes
            if _TOO_LARGE in (error.details() or ""):
                return ResourceExhaustedError(
                    f"the file provider sent a chunk of {fetch} of more than {limit} bytes, "
                    "the limit of one chunk",
                    metadata={"limit": str(limit)},
                )
            return _InterruptedError(ResourceExhaustedError("the file provider is at its limits"))
        fault = self._fault(f"status {code.name}")
        return _InterruptedError(fault, down=False) if code in _BROKEN else fault

    def _fault(self, what: str) -> ProviderFaultError:
        return ProviderFaultError(f"the file provider failed to send {self._fetch}: {what}")


class _Writer:
    """Write-behind buffer: chunks that arrive during a write form the next one.

    Tells the fetch how far the file is written. An async context manager.
    """

    def __init__(self, part: PartFile, fetch: Fetch, share: ChunkShare) -> None:
        self._part = part
        self._fetch = fetch
        self._share = share
        self._blocks: list[bytes] = []
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task:
            await self._task

    async def put(self, block: bytes) -> None:
        """Adds a block; waits for the disk if too much is unwritten."""
        self._blocks.append(block)
        self._bytes += len(block)
        if self._task and (self._task.done() or self._bytes > MAX_UNWRITTEN_BYTES):
            await self._task
            self._task = None
        if self._task is None and self._blocks:
            self._task = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while self._blocks:
            blocks, size, self._blocks, self._bytes = self._blocks, self._bytes, [], 0
            await asyncio.to_thread(self._part.append, blocks)
            self._share.written(size)
            self._fetch.written = self._part.written
            self._fetch.announce()
