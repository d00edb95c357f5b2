"""Calling GetModelFile: the request for a file, and types, of which the generated stub has none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol, TypeAlias

import grpc

from ml import model_management_pb2
from ml.internal import store_pb2
from shared.model_ids import ModelId, split_revision

Request: TypeAlias = model_management_pb2.ModelFileRequest
Chunk: TypeAlias = model_management_pb2.ModelFileChunk
# A string: the class takes type arguments in its stub alone.
Call: TypeAlias = "grpc.aio.UnaryStreamCall[Request, Chunk]"
StoreCall: TypeAlias = (
    "grpc.aio.UnaryStreamCall[store_pb2.ProvideRequest, store_pb2.ProvideResponse]"
)


class Stub(Protocol):
    """The part of ModelManagementServiceStub that is used here."""

    @property
    def GetModelFile(self) -> Callable[..., Call]: ...  # noqa: N802


class StoreStub(Protocol):
    """The part of ModelStoreStub that is used here."""

    @property
    def Provide(self) -> Callable[..., StoreCall]: ...  # noqa: N802
    @property
    def Absent(  # noqa: N802
        self,
    ) -> Callable[..., Awaitable[store_pb2.AbsentResponse]]: ...


@dataclass(frozen=True)
class Source:
    """Where files come from.

    Attributes:
        files: the provider.
        store: the same one, if it is model_mgmt_svc with its cache on this machine.
    """

    files: Stub
    store: StoreStub | None = None


def provide_request_of(model_id: ModelId, file_path: PurePosixPath) -> store_pb2.ProvideRequest:
    """The request for a file in the store, as `request_of`."""
    plain, revision = split_revision(model_id)
    return store_pb2.ProvideRequest(model_id=plain, file_path=str(file_path), revision=revision)


def request_of(model_id: ModelId, file_path: PurePosixPath, offset: int) -> Request:
    """The request for a file from `offset` on; the id may name a revision, see `at_revision`."""
    plain, revision = split_revision(model_id)
    return Request(model_id=plain, file_path=str(file_path), offset=offset, revision=revision)
