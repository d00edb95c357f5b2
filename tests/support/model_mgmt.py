"""model_mgmt_svc as a process, on free ports and folders of its own."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.rpc import error_details_pb2, status_pb2

from ml import common_pb2, model_management_pb2_grpc
from ml import model_management_pb2 as pb
from tests.support.processes import free_port, process, ready_channel


@dataclass
class ModelMgmt:
    """A running service and a client of it."""

    address: str
    process: subprocess.Popen[bytes]
    channel: grpc.aio.Channel
    folder: Path

    def __post_init__(self) -> None:
        self.stub = model_management_pb2_grpc.ModelManagementServiceStub(self.channel)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    async def load(self, model_id: str, kind: str = "text-generation", **fields: object):
        request = pb.LoadModelRequest(model_id=model_id, pipeline_type=kind, **fields)
        return await self.stub.LoadModel(request)

    async def unload(self, model_id: str) -> common_pb2.StatusResponse:
        return await self.stub.UnloadModel(pb.UnloadModelRequest(model_id=model_id))

    async def models(self) -> list[pb.LoadedModelInfo]:
        return list((await self.stub.GetLoadedModels(common_pb2.EmptyRequest())).models)

    async def file(self, model_id: str, path: str, offset: int = 0) -> list[pb.ModelFileChunk]:
        request = pb.ModelFileRequest(model_id=model_id, file_path=path, offset=offset)
        return [chunk async for chunk in self.stub.GetModelFile(request)]


@contextlib.asynccontextmanager
async def model_mgmt(
    folder: Path,
    *,
    provider: str,
    text: str = "",
    vision: str = "",
    port: int = 0,
    program: Sequence[str] = ("-m", "model_mgmt_svc"),
    **more: str,
) -> AsyncIterator[ModelMgmt]:
    """The service, accepting calls. `folder` keeps its cache and its desired models.

    `more` are settings, such as METRICS_PORT="9461".
    """
    address = f"127.0.0.1:{port or free_port()}"
    settings = {
        "PORT": address.rpartition(":")[2],
        "METRICS_PORT": "0",
        "TEXT_ADDRS": text,
        "VISION_ADDRS": vision,
        "CACHE_DIR": str(folder / "cache"),
        "STATE_DIR": str(folder / "state"),
        "RECONCILE_SECONDS": "0.1",
        "DRAIN_SECONDS": "0.1",
        "GRACE_SECONDS": "1",
        "PROVIDER_PATIENCE_SECONDS": "1",
        **more,
    }
    env = {f"MODEL_MGMT_{name}": value for name, value in settings.items()}
    env["FILE_PROVIDER_ADDR"] = provider
    with process(*program, env=env) as child:
        async with ready_channel(address) as channel:
            yield ModelMgmt(address, child, channel, folder)


@dataclass
class Failure:
    """A status with its details."""

    code: grpc.StatusCode
    message: str
    reason: str
    field: str
    retry_seconds: float


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """What a failed call says to people and to programs."""
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    packed = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    for detail in status_pb2.Status.FromString(packed).details:
        _ = detail.Unpack(info) or detail.Unpack(bad) or detail.Unpack(retry)
    field = bad.field_violations[0].field if bad.field_violations else ""
    seconds = retry.retry_delay.ToMilliseconds() / 1000
    return Failure(error.code(), error.details() or "", info.reason, field, seconds)
