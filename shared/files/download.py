"""One file's way from a provider to the disk: streamed, checked, resumed, retried."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator

import grpc

from shared.errors import (
    ModelFileNotFoundError,
    ProviderFaultError,
    ProviderUnavailableError,
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
from shared.files.fetch import (
    Fetch,
    FetchLimits,
)
from shared.files.freshness import is_unchanged
from shared.files.stub import (
    Call,
    Chunk,
    Request,
    Stub,
)
from shared.files.writer import Writer
from shared.rpc.channels import MAX_MESSAGE_BYTES
from shared.rpc.remote_errors import from_details
from shared.telemetry.tracing import outgoing_metadata

log = logging.getLogger(__name__)

# Between tries for the lock that another process holds on a part.
LOCK_POLL_SECONDS = 0.1
# Codes of a provider that is away, that broke off, and that did not like the request.
_DOWN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
)
_BROKEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)
_BAD_REQUEST = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
_AT_LIMITS = (
    f"the file provider is at its limits, or sent a chunk of more than {MAX_MESSAGE_BYTES} bytes"
)
# How often a file is begun at offset 0 before its provider is not believed any more.
MAX_STARTS = 8


class _InterruptedError(Exception):
    """The stream broke in a way that a new try may get over; `final` is raised if none does."""

    def __init__(self, final: ServiceError) -> None:
        super().__init__(final.message)
        self.final = final


class _StartOverError(Exception):
    """What is written belongs to other content than the provider has now."""


async def download(stub: Stub, entry: CacheEntry, limits: FetchLimits, fetch: Fetch) -> CachedFile:
    """Brings a file into the cache unless it is there: whole, right and what the provider has.

    Raises:
        As `ModelFiles.fetch`.
    """
    old = await asyncio.to_thread(entry.verify)
    if old and await _is_current(stub, entry, old, limits):
        return old
    part = await _lock_part(entry)
    keep = False
    try:
        # Another process may have finished it while this one waited for the lock.
        file = await asyncio.to_thread(entry.verify)
        if file and (old is None or file.sha256 != old.sha256):
            return file
        return await _Download(stub, part, limits, fetch).run()
    except ModelFileNotFoundError:
        if old:
            await asyncio.to_thread(entry.discard)
        raise
    except (UnavailableError, asyncio.CancelledError):
        keep = True
        raise
    finally:
        # Whoever is cancelled once more while this runs leaves no lock behind.
        await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(part.close, keep)))


async def _is_current(stub: Stub, entry: CacheEntry, old: CachedFile, limits: FetchLimits) -> bool:
    """Whether a cached file is still the provider's; one that cannot be asked changes nothing."""
    try:
        return await is_unchanged(stub, entry, old, limits.first_chunk_seconds)
    except ProviderUnavailableError as error:
        extra = {"file": str(entry.file_path), "model": entry.model_id, "error": error.message}
        log.info("a cached file is used as it is", extra=extra)
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
    """Closes what a thread has opened for a fetch that is gone."""
    if not opening.cancelled() and not opening.exception() and (part := opening.result()):
        asyncio.get_running_loop().run_in_executor(None, part.close)


class _Download:
    """Tries until the file is whole, it is hopeless, or the limits are reached."""

    def __init__(self, stub: Stub, part: PartFile, limits: FetchLimits, fetch: Fetch) -> None:
        self._stub = stub
        self._part = part
        self._limits = limits
        self._fetch = fetch

    async def run(self) -> CachedFile:
        failures = starts = 0
        offset = self._part.written
        while starts < MAX_STARTS:
            starts += offset == 0
            try:
                await self._stream(offset)
                return await asyncio.to_thread(self._part.finish)
            except _StartOverError:
                offset = 0
            except HashMismatchError:
                if not self._part.resumed:
                    raise self._fault("its SHA-256 is not the one it was said to have") from None
                offset = 0
            except _InterruptedError as error:
                failures = 1 if self._part.written > offset else failures + 1
                if failures >= self._limits.attempts:
                    raise error.final from error
                offset = self._part.written
                await self._back_off(failures, error)
        raise self._fault(f"it had to be begun {MAX_STARTS} times")

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

    async def _stream(self, offset: int) -> None:
        """One call: receives from `offset` to the end."""
        fetch = self._fetch
        call = self._stub.GetModelFile(
            Request(model_id=fetch.model_id, file_path=str(fetch.file_path), offset=offset),
            metadata=outgoing_metadata(),
        )
        try:
            chunk = await self._read(call, offset, self._limits.first_chunk_seconds)
            position = await self._begin(chunk, offset)
            async with Writer(self._part, fetch) as writer:
                while True:
                    position = self._check(chunk, position)
                    await writer.put(chunk.data)
                    if chunk.is_last:
                        return
                    chunk = await self._read_more(call, position)
        finally:
            call.cancel()

    async def _begin(self, first: Chunk, asked: int) -> int:
        """Prepares the part for what the first chunk says; where writing goes on."""
        fetch, source = self._fetch, SourceVersion(first.total_size, first.sha256)
        if first.offset not in (0, asked) or first.total_size < 0:
            raise self._fault(
                f"asked for offset {asked} it began at {first.offset} of {first.total_size} bytes"
            )
        known = self._part.source
        if first.offset and known and not source.agrees_with(known):
            raise _StartOverError
        if first.offset == 0 and fetch.part is not None and fetch.written:
            # Before the content changes: readers look at this after each read.
            fetch.restarts += 1
            fetch.part = None
        await asyncio.to_thread(self._part.begin, source, first.offset)
        fetch.total_size = source.total_size
        fetch.sha256 = source.sha256
        fetch.written = self._part.written
        fetch.part = self._part
        fetch.announce()
        return first.offset

    def _check(self, chunk: Chunk, position: int) -> int:
        """Where the next chunk must begin; raises when this one does not fit."""
        total = self._fetch.total_size
        end = position + len(chunk.data)
        if chunk.total_size != total:
            raise self._fault(f"total_size changed from {total} to {chunk.total_size}")
        if chunk.offset != position:
            raise self._fault(f"a chunk has offset {chunk.offset} where {position} was due")
        if end > total:
            raise self._fault(f"it has {end} bytes or more of {total}")
        if chunk.is_last and end < total:
            raise self._fault(f"the last chunk ends at {end} of {total} bytes")
        return end

    async def _read_more(self, call: Call, position: int) -> Chunk:
        """The next chunk that brings data or the end; empty ones do not count as life."""
        async with self._deadline(self._limits.stall_seconds):
            while True:
                chunk = await self._next(call, position)
                if chunk.data or chunk.is_last:
                    return chunk
                self._check(chunk, position)

    async def _read(self, call: Call, offset: int, seconds: float) -> Chunk:
        async with self._deadline(seconds):
            return await self._next(call, offset)

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
        code, ours = error.code(), from_details(error)
        if code in _BAD_REQUEST and position:
            return _StartOverError()
        if isinstance(ours, UnavailableError) and not isinstance(ours, ProviderUnavailableError):
            return _InterruptedError(ProviderUnavailableError(ours.message))
        if ours:
            return ours  # what lies behind it has been tried again there
        if code is grpc.StatusCode.NOT_FOUND:
            return ModelFileNotFoundError(f"the file provider has no file {self._fetch}")
        if code in _DOWN:
            return _InterruptedError(ProviderUnavailableError("the file provider is not reachable"))
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return _InterruptedError(ResourceExhaustedError(_AT_LIMITS))
        fault = self._fault(f"it answered {code.name}")
        return _InterruptedError(fault) if code in _BROKEN else fault

    def _fault(self, what: str) -> ProviderFaultError:
        return ProviderFaultError(f"the file provider sent {self._fetch} wrongly: {what}")
