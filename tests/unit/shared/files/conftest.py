"""A provider with one file, a client of it, and ways in which a provider ends early."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from ml import model_management_pb2 as pb
from shared.files.client import ModelFiles
from shared.files.fetch import FetchLimits
from tests.support.providers import CHUNK_BYTES, Context, Provider, chunks

MODEL, NAME = "org/name", "model.safetensors"
KEY = f"{MODEL}/{NAME}"
CONTENT = random.Random(1).randbytes(10 * CHUNK_BYTES + 17)
QUICK = FetchLimits(
    patience_seconds=0, backoff_seconds=0.01, first_chunk_seconds=60, stall_seconds=60
)
CUT = 3 * CHUNK_BYTES


async def dies(
    provider: Provider, request: pb.ModelFileRequest, content: bytes, context: Context
) -> AsyncIterator[pb.ModelFileChunk]:
    """Breaks off after three chunks, as a process that is killed does."""
    for chunk in chunks(content, request.offset)[:3]:
        yield chunk
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


async def hangs(
    provider: Provider, request: pb.ModelFileRequest, content: bytes, context: Context
) -> AsyncIterator[pb.ModelFileChunk]:
    """Sends three chunks and then nothing."""
    for chunk in chunks(content, request.offset)[:3]:
        yield chunk
    await asyncio.Event().wait()


@pytest.fixture
async def source() -> AsyncIterator[Provider]:
    async with Provider({KEY: CONTENT}).running() as provider:
        yield provider


@pytest.fixture
async def files(source: Provider, tmp_path: Path) -> AsyncIterator[ModelFiles]:
    async with ModelFiles(source.address, tmp_path / "cache", limits=QUICK) as provider:
        yield provider


def leftovers(cache: Path) -> list[str]:
    """What is in the cache beside whole files and their records."""
    state = cache / ".fetch"
    return sorted(
        path.name
        for path in (state.iterdir() if state.is_dir() else ())
        if path.suffix != ".json" or path.name.endswith(".part.json")
    )


def parts(cache: Path) -> list[Path]:
    return list(cache.glob(".fetch/*.part"))
