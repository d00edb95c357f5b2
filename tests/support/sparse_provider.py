"""A file provider in a process of its own with files of many zeros.

`python -m tests.support.sparse_provider PORT BYTES [CHUNK_BYTES]`
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import grpc

from ml import model_management_pb2 as pb
from ml import model_management_pb2_grpc as pb_grpc
from tests.support.providers import CHUNK_BYTES


class SparseProvider(pb_grpc.ModelManagementServiceServicer):
    """Every file of every model is `size` zeros."""

    def __init__(self, size: int, chunk_bytes: int) -> None:
        self._size = size
        self._chunk_bytes = chunk_bytes

    async def GetModelFile(
        self, request: pb.ModelFileRequest, context: object
    ) -> AsyncIterator[pb.ModelFileChunk]:
        zeros = bytes(self._chunk_bytes)
        for start in range(request.offset, self._size, self._chunk_bytes):
            data = zeros[: self._size - start]
            last = start + len(data) == self._size
            yield pb.ModelFileChunk(data=data, offset=start, total_size=self._size, is_last=last)


async def main(port: str, size: str, chunk_bytes: str = str(CHUNK_BYTES)) -> None:
    """Serves until it is killed."""
    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    servicer = SparseProvider(int(size), int(chunk_bytes))
    pb_grpc.add_ModelManagementServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
