"""File providers as real gRPC servers, correct ones and faulty ones."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc

from ml import model_management_pb2 as pb
from ml import model_management_pb2_grpc as pb_grpc

CHUNK_BYTES = 102_400

Context = grpc.aio.ServicerContext
# Answers one call; `content` is the whole file.
Behaviour = Callable[
    ["Provider", pb.ModelFileRequest, bytes, Context],
    AsyncIterator[pb.ModelFileChunk],
]


def chunks(
    content: bytes, offset: int = 0, *, sha256: str = "", size: int = CHUNK_BYTES
) -> list[pb.ModelFileChunk]:
    """The messages of a right answer."""
    total = len(content)
    starts = list(range(offset, total, size)) or [offset]
    return [
        pb.ModelFileChunk(
            data=content[start : start + size],
            offset=start,
            total_size=total,
            is_last=start + size >= total,
            sha256=sha256 if start == offset else "",
        )
        for start in starts
    ]


async def honest(
    provider: Provider,
    request: pb.ModelFileRequest,
    content: bytes,
    context: Context,
) -> AsyncIterator[pb.ModelFileChunk]:
    """Resumes at the offset and tells the hash."""
    if request.offset > len(content):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "offset")
    for chunk in chunks(content, request.offset, sha256=hashlib.sha256(content).hexdigest()):
        yield chunk


async def old(
    provider: Provider,
    request: pb.ModelFileRequest,
    content: bytes,
    context: Context,
) -> AsyncIterator[pb.ModelFileChunk]:
    """A provider that does not know this project's newer fields."""
    for chunk in chunks(content):
        yield chunk


class Provider(pb_grpc.ModelManagementServiceServicer):
    """Serves `files` ("org/name/path" → content); `behaviours` are used up, one a call, first."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.requests: list[pb.ModelFileRequest] = []
        self.behaviours: list[Behaviour] = []
        self.usual: Behaviour = honest
        self.cancelled = 0
        self.address = ""

    async def GetModelFile(self, request, context):
        self.requests.append(request)
        content = self.files.get(f"{request.model_id}/{request.file_path}")
        if content is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such file")
        behaviour = self.behaviours.pop(0) if self.behaviours else self.usual
        try:
            async for chunk in behaviour(self, request, content, context):
                yield chunk
        except BaseException:
            self.cancelled += 1
            raise

    def asked_for(self, path: str) -> list[int]:
        """The offsets that were asked of one file, in order."""
        return [r.offset for r in self.requests if f"{r.model_id}/{r.file_path}" == path]

    @contextlib.asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[Provider]:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_ModelManagementServiceServicer_to_server(self, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        self.address = f"127.0.0.1:{port}"
        try:
            yield self
        finally:
            await server.stop(None)


def folder_files(folder: Path, model_id: str) -> dict[str, bytes]:
    """The files of a folder as a provider's."""
    return {
        f"{model_id}/{path.relative_to(folder)}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
