"""Chunks over the limit are refused before they are in memory; all others share a bounded one."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import grpc
import pytest

from ml import model_management_pb2 as pb
from tests.support.attack import Attacks
from tests.support.model_mgmt import failure_of, model_mgmt
from tests.support.processes import free_port, process, ready_channel, rss_bytes

FILES, FILE_BYTES = 11, 24 << 20
LIMIT = 4 << 20


async def read(stub, number: int) -> str:
    """The hash of a file as it is read."""
    digest = hashlib.sha256()
    request = pb.ModelFileRequest(model_id="org/name", file_path=f"{number}.safetensors")
    async for chunk in stub.GetModelFile(request):
        digest.update(chunk.data)
    return digest.hexdigest()


@pytest.mark.parametrize("chunk_bytes", [60 << 20, LIMIT], ids=["over the limit", "at the limit"])
async def test_large_chunks(attack: Attacks, tmp_path: Path, chunk_bytes: int) -> None:
    """Eleven files in large chunks at once take tens of MiB, whatever the size of the chunks."""
    port = free_port()
    source = f"127.0.0.1:{port}"
    arguments = (str(port), str(FILE_BYTES), str(chunk_bytes))
    with process("-m", "tests.support.sparse_provider", *arguments, env={}):
        async with ready_channel(source), model_mgmt(tmp_path, provider=source) as service:
            before = worst = rss_bytes(service.process.pid)
            words = f"5 chunks of {chunk_bytes >> 20} MiB"
            with attack(words, processes=[service.process], bystander=None) as seen:
                reads = [asyncio.create_task(read(service.stub, i)) for i in range(FILES)]
                while not all(each.done() for each in reads):
                    worst = max(worst, rss_bytes(service.process.pid))
                    await asyncio.sleep(0.005)
                if chunk_bytes > LIMIT:
                    for each in reads:
                        with pytest.raises(grpc.aio.AioRpcError) as caught:
                            await each
                        failure = failure_of(caught.value)
                        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                        assert f"more than {LIMIT} bytes" in failure.message
                    seen.say(f"refused: {FILES} files in chunks of 60 MiB, the limit is 4 MiB")
                else:
                    right = hashlib.sha256(bytes(FILE_BYTES)).hexdigest()
                    assert {each.result() for each in reads} == {right}
                    seen.say(f"{FILES} files in chunks of 4 MiB received whole")
                assert worst - before < 160 << 20
