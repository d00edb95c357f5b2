"""Providers that break the contract: each lie is named, and nothing of it is kept."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from ml import model_management_pb2 as pb
from shared.errors import (
    ProviderFaultError,
    ProviderUnavailableError,
    ResourceExhaustedError,
    ServiceError,
)
from shared.files.client import ModelFiles
from shared.files.fetch import FetchLimits
from tests.support.providers import CHUNK_BYTES, Provider, chunks

CONTENT = bytes(range(256)) * 1200
TOTAL = len(CONTENT)
QUICK = FetchLimits(
    attempts=2, patience_seconds=0, backoff_seconds=0.01, first_chunk_seconds=60, stall_seconds=60
)

Messages = list[pb.ModelFileChunk]


def more_bytes(messages: Messages) -> Messages:
    extra = pb.ModelFileChunk(data=b"x", offset=TOTAL, total_size=TOTAL, is_last=True)
    messages[-1].is_last = False
    return [*messages, extra]


def fewer_bytes(messages: Messages) -> Messages:
    messages[-2].is_last = True
    return messages[:-1]


def too_large_a_chunk(messages: Messages) -> Messages:
    messages[-1].data += b"x"
    return messages


def total_changes(messages: Messages) -> Messages:
    messages[1].total_size += 1
    return messages


def total_is_negative(messages: Messages) -> Messages:
    messages[0].total_size = -1
    return messages


def begins_elsewhere(messages: Messages) -> Messages:
    return messages[1:]


def gap(messages: Messages) -> Messages:
    return [messages[0], *messages[2:]]


def repeats(messages: Messages) -> Messages:
    return [messages[0], *messages]


def negative_offset(messages: Messages) -> Messages:
    messages[0].offset = -1
    return messages


def no_last(messages: Messages) -> Messages:
    messages[-1].is_last = False
    return messages


def ends_early(messages: Messages) -> Messages:
    return messages[:1]


def nothing_at_all(messages: Messages) -> Messages:
    return []


def wrong_hash(messages: Messages) -> Messages:
    messages[0].sha256 = hashlib.sha256(b"other").hexdigest()
    return messages


def files_in(folder: Path) -> list[str]:
    """All files but those in quarantine, which only a wrong hash has."""
    return [
        path.name
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != ".quarantine"
    ]


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (more_bytes, f"{TOTAL + 1} bytes instead of {TOTAL}"),
        (too_large_a_chunk, f"{TOTAL + 1} bytes instead of {TOTAL}"),
        (fewer_bytes, f"the last chunk ends at {2 * CHUNK_BYTES} of {TOTAL}"),
        (total_changes, f"total_size changed from {TOTAL} to {TOTAL + 1}"),
        (total_is_negative, "began at 0 of -1 bytes"),
        (begins_elsewhere, f"asked for offset 0, it began at {CHUNK_BYTES}"),
        (gap, f"offset {2 * CHUNK_BYTES} instead of {CHUNK_BYTES}"),
        (repeats, f"offset 0 instead of {CHUNK_BYTES}"),
        (negative_offset, "began at -1"),
        (no_last, f"ended at {TOTAL} bytes without a last chunk"),
        (ends_early, f"ended at {CHUNK_BYTES} bytes without a last chunk"),
        (nothing_at_all, "ended at 0 bytes without a last chunk"),
        (wrong_hash, "SHA-256"),
    ],
)
async def test_a_lie_is_named_and_nothing_is_kept(
    tmp_path: Path, lie: Callable[[Messages], Messages], said: str
) -> None:
    async def liar(provider, request, content, context) -> AsyncIterator[pb.ModelFileChunk]:
        for chunk in lie(chunks(content, request.offset)):
            yield chunk

    source = Provider({"a/b/f.bin": CONTENT})
    source.usual = liar
    async with source.running(), ModelFiles(source.address, tmp_path, limits=QUICK) as files:
        with pytest.raises(ProviderFaultError) as caught:
            await files.fetch("a/b", "f.bin")
    assert said in caught.value.message
    assert "'f.bin' of model 'a/b'" in caught.value.message
    assert files_in(tmp_path) == []
    assert len(source.requests) == 1


@pytest.mark.parametrize(
    ("code", "error", "calls"),
    [
        (grpc.StatusCode.UNAVAILABLE, ProviderUnavailableError, 2),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ProviderUnavailableError, 2),
        (grpc.StatusCode.CANCELLED, ProviderUnavailableError, 2),
        (grpc.StatusCode.INTERNAL, ProviderFaultError, 2),
        (grpc.StatusCode.UNKNOWN, ProviderFaultError, 2),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhaustedError, 2),
        (grpc.StatusCode.UNIMPLEMENTED, ProviderFaultError, 1),
        (grpc.StatusCode.PERMISSION_DENIED, ProviderFaultError, 1),
        (grpc.StatusCode.INVALID_ARGUMENT, ProviderFaultError, 1),
    ],
)
async def test_statuses_of_a_provider(
    tmp_path: Path, code: grpc.StatusCode, error: type[ServiceError], calls: int
) -> None:
    async def refuses(provider, request, content, context) -> AsyncIterator[pb.ModelFileChunk]:
        await context.abort(code, "/secret/path: no")
        yield pb.ModelFileChunk()

    source = Provider({"a/b/f.bin": CONTENT})
    source.usual = refuses
    async with source.running(), ModelFiles(source.address, tmp_path, limits=QUICK) as files:
        with pytest.raises(error) as caught:
            await files.fetch("a/b", "f.bin")
    assert "secret" not in caught.value.message
    assert len(source.requests) == calls


async def test_a_file_that_never_stays_the_same_is_given_up(tmp_path: Path) -> None:
    source = Provider({"a/b/f.bin": CONTENT})

    async def restless(provider, request, content, context) -> AsyncIterator[pb.ModelFileChunk]:
        version = bytes([len(provider.requests)]) * TOTAL
        sha256 = hashlib.sha256(version).hexdigest()
        yield chunks(version, request.offset, sha256=sha256)[0]
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    source.usual = restless
    async with source.running(), ModelFiles(source.address, tmp_path, limits=QUICK) as files:
        with pytest.raises(ServiceError):
            await files.fetch("a/b", "f.bin")
    assert len(source.requests) < 30
