"""GetModelFile as the application serves it; its other RPCs are UNIMPLEMENTED."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc

from ml import model_management_pb2 as pb
from shared.rpc.interceptors import Context
from tools.dev_provider.files import ModelFolder

CHUNK_BYTES = 102_400


@dataclass(frozen=True)
class Fields:
    """Which of the newer fields are supported; an old provider supports none.

    Attributes:
        offset: starts at the requested offset instead of at 0.
        sha256: sends the hash on the first chunk, if it is known.
        revision: sends the files of the requested revision, and says so on the first chunk.
    """

    offset: bool = True
    sha256: bool = True
    revision: bool = True


class FileProvider:
    """Serves the files of a model folder."""

    def __init__(self, folder: ModelFolder, fields: Fields) -> None:
        self._folder = folder
        self._fields = fields

    async def GetModelFile(
        self, request: pb.ModelFileRequest, context: Context
    ) -> AsyncIterator[pb.ModelFileChunk]:
        offset = request.offset if self._fields.offset else 0
        revision = request.revision if self._fields.revision else ""
        opened = await asyncio.to_thread(
            self._folder.open, request.model_id, request.file_path, offset, revision
        )
        sha256 = opened.sha256 if self._fields.sha256 else ""
        position, size = opened.offset, opened.size
        if position == size:
            opened.file.close()
            yield pb.ModelFileChunk(
                offset=position, total_size=size, is_last=True, sha256=sha256, revision=revision
            )
            return
        async for data in self._folder.read(opened, CHUNK_BYTES):
            chunk = pb.ModelFileChunk(
                data=data, offset=position, total_size=size, sha256=sha256, revision=revision
            )
            position, sha256, revision = position + len(data), "", ""
            chunk.is_last = position == size
            yield chunk


def add_to_server(provider: FileProvider, server: grpc.aio.Server) -> None:
    """Registers GetModelFile alone; gRPC answers UNIMPLEMENTED for the other RPCs."""
    get_model_file = grpc.unary_stream_rpc_method_handler(
        provider.GetModelFile,
        request_deserializer=pb.ModelFileRequest.FromString,
        response_serializer=pb.ModelFileChunk.SerializeToString,
    )
    name = pb.DESCRIPTOR.services_by_name["ModelManagementService"].full_name
    handlers = {"GetModelFile": get_model_file}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
