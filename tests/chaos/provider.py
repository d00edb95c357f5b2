"""A file provider that can be slow, silent or lying: `python -m tests.chaos.provider FOLDER PORT`.

It reads how to behave from `FOLDER/behaviour.json` at each call and between two chunks; without the
file it is honest. Its models are in `FOLDER/text/ORG/NAME/`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc

from ml import model_management_pb2 as pb
from shared.rpc.interceptors import ErrorInterceptor
from tools.dev_provider.files import ModelFolder
from tools.dev_provider.service import Fields, FileProvider, add_to_server

SLOW_BYTES = 1024
HOLD_SHARE = 0.4
# Only files larger than this are held.
HELD_BYTES = 1 << 20
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Behaviour:
    """How it serves.

    Attributes:
        slow: it sends `SLOW_BYTES` a second.
        silent: it takes calls and sends nothing.
        lie: "bytes", "hash" or "size" is wrong; empty: nothing is.
        hold: the files of this model stop at `HOLD_SHARE`, and wait; `held` is then there.
    """

    slow: bool = False
    silent: bool = False
    lie: str = ""
    hold: str = ""

    def write(self, folder: Path) -> None:
        """Makes a provider of this folder behave so."""
        place = folder / "behaviour.json"
        place.with_suffix(".new").write_text(json.dumps(asdict(self)))
        place.with_suffix(".new").replace(place)


def read_behaviour(folder: Path) -> Behaviour:
    """What a provider of this folder is to do."""
    with contextlib.suppress(FileNotFoundError):
        return Behaviour(**json.loads((folder / "behaviour.json").read_text()))
    return Behaviour()


def held(folder: Path) -> Path:
    """The file that is there while a fetch is held."""
    return folder / "held"


class FaultyProvider(FileProvider):
    """Serves a folder as it is told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(ModelFolder(folder / "text"), Fields())
        self._place = folder

    async def GetModelFile(
        self, request: pb.ModelFileRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ModelFileChunk]:
        async for chunk in super().GetModelFile(request, context):
            told = read_behaviour(self._place)
            while told.silent:
                await asyncio.sleep(_LOOK_SECONDS)
                told = read_behaviour(self._place)
            if told.lie and chunk.total_size:
                _lie(chunk, told.lie)
            large = chunk.total_size > HELD_BYTES
            if large and told.hold == request.model_id and _is_at_hold(chunk):
                await self._hold(request.model_id)
            if told.slow:
                async for piece in _trickled(chunk, self._place):
                    yield piece
            else:
                yield chunk

    async def _hold(self, model_id: str) -> None:
        held(self._place).write_text(model_id)
        while read_behaviour(self._place).hold == model_id:
            await asyncio.sleep(_LOOK_SECONDS)
        held(self._place).unlink(missing_ok=True)


def _is_at_hold(chunk: pb.ModelFileChunk) -> bool:
    return bool(chunk.offset >= HOLD_SHARE * chunk.total_size)


def _lie(chunk: pb.ModelFileChunk, lie: str) -> None:
    if lie == "bytes":
        chunk.data = bytes(255 - byte for byte in chunk.data)
    elif lie == "hash" and chunk.sha256:
        chunk.sha256 = chunk.sha256[::-1]
    elif lie == "size":
        chunk.total_size += 1000


async def _trickled(chunk: pb.ModelFileChunk, folder: Path) -> AsyncIterator[pb.ModelFileChunk]:
    """A chunk in small pieces, slowly for as long as that is wanted."""
    for start in range(0, max(1, len(chunk.data)), SLOW_BYTES):
        piece = pb.ModelFileChunk()
        piece.CopyFrom(chunk)
        piece.data = chunk.data[start : start + SLOW_BYTES]
        piece.offset = chunk.offset + start
        last = start + SLOW_BYTES >= len(chunk.data)
        piece.is_last = chunk.is_last and last
        if start:
            piece.sha256 = piece.revision = ""
        yield piece
        if read_behaviour(folder).slow:
            await asyncio.sleep(1)


async def serve(folder: Path, port: int) -> None:
    """Serves until the process that started it is gone."""
    parent = os.getppid()
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=[("grpc.so_reuseport", 0)])
    add_to_server(FaultyProvider(folder), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    while os.getppid() == parent:
        await asyncio.sleep(1)
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
