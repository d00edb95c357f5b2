"""Whether a cached file is still what the provider has, and whether the provider has a file."""

from __future__ import annotations

import asyncio

import grpc

from shared.errors import ModelFileNotFoundError, ProviderUnavailableError
from shared.files.cache import CachedFile, CacheEntry
from shared.files.stub import Chunk, Stub, request_of
from shared.rpc.status import from_details
from shared.telemetry.tracing import outgoing_metadata

# Statuses of a provider that has a shorter file, or none.
_CHANGED = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE,
)


async def is_unchanged(stub: Stub, entry: CacheEntry, cached: CachedFile, seconds: float) -> bool:
    """Asks for what follows the cached bytes: the answer is one empty chunk with size and hash.

    If the provider sends its hash, the hashes are compared. Otherwise the sizes are, and the first
    chunk of a provider that ignores offsets; content that agrees in all of these counts as the
    same.

    Args:
        stub: of the provider.
        entry: the file to ask for.
        cached: its cached content.
        seconds: timeout of the call.

    Raises:
        ProviderUnavailableError: it cannot be asked now.
    """
    request = request_of(entry.model_id, entry.file_path, cached.size)
    call = stub.GetModelFile(request, metadata=outgoing_metadata())
    try:
        async with asyncio.timeout(seconds):
            chunk = await call.read()
    except TimeoutError:
        raise ProviderUnavailableError("the file provider does not answer") from None
    except grpc.aio.AioRpcError as error:
        if error.code() in _CHANGED:
            return False
        raise ProviderUnavailableError("the file provider cannot be asked") from error
    finally:
        call.cancel()
    return isinstance(chunk, Chunk) and await asyncio.to_thread(_matches, chunk, cached)


def _matches(chunk: Chunk, cached: CachedFile) -> bool:
    if chunk.total_size != cached.size or chunk.offset not in (0, cached.size):
        return False
    if chunk.sha256:
        return bool(chunk.sha256 == cached.sha256)
    with cached.open_reader() as file:
        file.seek(chunk.offset)
        return bool(file.read(len(chunk.data)) == chunk.data)


async def is_absent(stub: Stub, entry: CacheEntry, seconds: float) -> bool:
    """Whether the provider says that it does not have a file; False if it fails, too.

    Args:
        stub: of the provider.
        entry: the file to ask for.
        seconds: timeout of the call.

    Raises:
        ProviderUnavailableError: it does not answer.
    """
    call = stub.GetModelFile(
        request_of(entry.model_id, entry.file_path, 0), metadata=outgoing_metadata()
    )
    try:
        async with asyncio.timeout(seconds):
            await call.read()
    except TimeoutError:
        raise ProviderUnavailableError("the file provider does not answer") from None
    except grpc.aio.AioRpcError as error:
        ours = from_details(error)
        return error.code() is grpc.StatusCode.NOT_FOUND and (
            ours is None or isinstance(ours, ModelFileNotFoundError)
        )
    finally:
        call.cancel()
    return False
