"""Types for calling GetModelFile: the generated stub has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import grpc

from ml import model_management_pb2

Request: TypeAlias = model_management_pb2.ModelFileRequest
Chunk: TypeAlias = model_management_pb2.ModelFileChunk
# A string: the class takes type arguments in its stub alone.
Call: TypeAlias = "grpc.aio.UnaryStreamCall[Request, Chunk]"


class Stub(Protocol):
    """The part of ModelManagementServiceStub that is used here."""

    @property
    def GetModelFile(self) -> Callable[..., Call]: ...  # noqa: N802
