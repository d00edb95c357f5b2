"""Calling GetModelFile: the request for a file, and types, of which the generated stub has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Protocol, TypeAlias

import grpc

from ml import model_management_pb2
from shared.model_ids import ModelId, split_revision

Request: TypeAlias = model_management_pb2.ModelFileRequest
Chunk: TypeAlias = model_management_pb2.ModelFileChunk
# A string: the class takes type arguments in its stub alone.
Call: TypeAlias = "grpc.aio.UnaryStreamCall[Request, Chunk]"


class Stub(Protocol):
    """The part of ModelManagementServiceStub that is used here."""

    @property
    def GetModelFile(self) -> Callable[..., Call]: ...  # noqa: N802


def request_of(model_id: ModelId, file_path: PurePosixPath, offset: int) -> Request:
    """The request for a file from `offset` on; the id may name a revision, see `at_revision`."""
    plain, revision = split_revision(model_id)
    return Request(model_id=plain, file_path=str(file_path), offset=offset, revision=revision)
