"""Whether a provider still has a file as it is cached: published anew, it would be another."""

from __future__ import annotations

import asyncio

import grpc

from shared.errors import ProviderUnavailableError
from shared.files.cache import (
    CachedFile,
    CacheEntry,
)
from shared.files.stub import (
    Chunk,
    Request,
    Stub,
)
from shared.telemetry.tracing import outgoing_metadata

# Statuses of a provider that has no byte where the cached file ends: it has a shorter one or none.
_OTHER = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE,
)


async def is_unchanged(stub: Stub, entry: CacheEntry, cached: CachedFile, seconds: float) -> bool:
    """Asks for what comes after the cached bytes: one message that is empty, with size and hash.

    The hashes decide where the provider tells its own. Else the sizes do, and what one that knows
    no offsets sends first; content that differs in nothing of these is taken for the same.

    Args:
        seconds: how long the provider may take.

    Raises:
        ProviderUnavailableError: it cannot be asked now.
    """
    path = str(entry.file_path)
    request = Request(model_id=entry.model_id, file_path=path, offset=cached.size)
    call = stub.GetModelFile(request, metadata=outgoing_metadata())
    try:
        async with asyncio.timeout(seconds):
            chunk = await call.read()
    except TimeoutError:
        raise ProviderUnavailableError("the file provider does not answer") from None
    except grpc.aio.AioRpcError as error:
        if error.code() in _OTHER:
            return False
        raise ProviderUnavailableError("the file provider cannot be asked") from error
    finally:
        call.cancel()
    return isinstance(chunk, Chunk) and await asyncio.to_thread(_is_of, chunk, cached)


def _is_of(chunk: Chunk, cached: CachedFile) -> bool:
    if chunk.total_size != cached.size or chunk.offset not in (0, cached.size):
        return False
    if chunk.sha256:
        return bool(chunk.sha256 == cached.sha256)
    with cached.open_reader() as file:
        file.seek(chunk.offset)
        return bool(file.read(len(chunk.data)) == chunk.data)
