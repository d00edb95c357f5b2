"""A fetch goes on where it was after the death of either side: real processes, killed with -9."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from ml import model_management_pb2 as pb
from shared.files.client import ModelFiles
from shared.files.fetch import FetchLimits
from shared.files.space import CacheSpace
from shared.model_ids import ModelId
from tests.support.model_mgmt import model_mgmt
from tests.support.processes import free_port, process, ready_channel
from tests.support.providers import CHUNK_BYTES, Context, Provider, chunks, honest
from tests.support.waiting import until

MODEL, NAME = ModelId("org/name"), "model.safetensors"
CONTENT = random.Random(7).randbytes(40 * CHUNK_BYTES + 11)
# Where the other side is killed: at 40 % of the file.
CUT = 16 * CHUNK_BYTES
PATIENT = FetchLimits(patience_seconds=120, backoff_seconds=0.05, max_backoff_seconds=0.2)


async def stops_at_the_cut(
    provider: Provider, request: pb.ModelFileRequest, content: bytes, context: Context
) -> AsyncIterator[pb.ModelFileChunk]:
    for chunk in chunks(content, request.offset):
        if chunk.offset >= CUT:
            await asyncio.Event().wait()
        yield chunk


async def test_the_fetcher_is_killed_while_a_service_waits_for_its_file(tmp_path: Path) -> None:
    """model_mgmt_svc dies at 40 %; the service that waits has its link once that is back."""
    store, port = tmp_path / "model_mgmt" / "cache", free_port()
    async with (
        Provider({f"{MODEL}/{NAME}": CONTENT}).running() as source,
        ModelFiles(
            f"127.0.0.1:{port}",
            tmp_path / "text",
            limits=PATIENT,
            space=CacheSpace(tmp_path / "text", 1 << 30, store=store),
        ) as text,
    ):
        source.usual = stops_at_the_cut
        seen: list[int] = []
        folder = tmp_path / "model_mgmt"
        async with model_mgmt(folder, provider=source.address, port=port) as service:
            fetch = asyncio.create_task(
                text.fetch(MODEL, NAME, lambda fetched, _: seen.append(fetched))
            )
            await until(lambda: bool(seen) and seen[-1] == CUT, 60)
            service.process.send_signal(signal.SIGKILL)
            service.process.wait()
        [part] = store.glob(".fetch/*.part")
        assert part.stat().st_size == CUT
        source.usual = honest
        async with model_mgmt(folder, provider=source.address, port=port):
            place = await asyncio.wait_for(fetch, 60)
        assert place.read_bytes() == CONTENT
        assert [request.offset for request in source.requests] == [0, CUT]
        assert place.samefile(store / "org--name" / NAME)
        assert not list(store.glob(".fetch/*.part*"))


async def test_the_provider_is_killed(tmp_path: Path) -> None:
    """It dies at 40 % and comes back on its port; no byte is received twice."""
    file = tmp_path / "models" / MODEL / NAME
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    port = free_port()
    command = ("-m", "tools.dev_provider", "--root", str(tmp_path / "models"), "--port", str(port))
    # Slow enough that there is a middle, whatever the machine does.
    limits = FetchLimits(
        patience_seconds=120,
        backoff_seconds=0.05,
        max_backoff_seconds=0.2,
        bytes_per_second=2 * len(CONTENT) // 3,
    )
    seen: list[int] = []
    async with ModelFiles(f"127.0.0.1:{port}", tmp_path / "cache", limits=limits) as files:
        with process(*command, env={}) as provider:
            async with ready_channel(f"127.0.0.1:{port}"):
                pass
            fetch = asyncio.create_task(
                files.fetch(MODEL, NAME, lambda fetched, _: seen.append(fetched))
            )
            await until(lambda: bool(seen) and seen[-1] >= CUT, 60)
            provider.send_signal(signal.SIGKILL)
            provider.wait()
        [part] = files.cache_dir.glob(".fetch/*.part")
        assert CUT <= part.stat().st_size < len(CONTENT)
        with process(*command, env={}):
            place = await asyncio.wait_for(fetch, 60)
    assert place.read_bytes() == CONTENT
    assert seen == sorted(seen)
