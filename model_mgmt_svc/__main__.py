"""Starts model_mgmt_svc: `python -m model_mgmt_svc`."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial

import grpc

from ml import (  # noqa: F401  # imported so that reflection can describe the services behind
    mediapipe_pb2,
    model_management_pb2,
    transformers_pb2,
)
from ml.internal import worker_pb2_grpc
from model_mgmt_svc.lease import Lease
from model_mgmt_svc.model_watch import ModelWatch
from model_mgmt_svc.plane import BEHIND, Plane, opened
from model_mgmt_svc.service import (
    NAME,
    ModelDemandServicer,
    ModelManagementServicer,
    add_servicer,
)
from model_mgmt_svc.settings import ModelMgmtSettings
from shared.rpc.server import Health, main, serve
from shared.rpc.standby import serve_as_standby

_SERVICE = model_management_pb2.DESCRIPTOR.services_by_name["ModelManagementService"]


async def run(settings: ModelMgmtSettings) -> None:
    """Serves until SIGTERM, as a standby first while another process holds the lease."""
    lease = Lease(settings.state_dir, seconds=settings.lease_seconds, on_lost=_end_process)
    try:
        leads = await lease.take() or await serve_as_standby(settings, _SERVICE, lease.wait())
        if leads:
            keeping = asyncio.create_task(lease.keep())
            try:
                await _lead(settings, lease)
            finally:
                keeping.cancel()
                await asyncio.wait((keeping,))
    finally:
        await lease.give_back()


def _end_process() -> None:
    """Ends this process in order; its supervisor starts it again, as a standby."""
    os.kill(os.getpid(), signal.SIGTERM)


async def _lead(settings: ModelMgmtSettings, lease: Lease) -> None:
    """Serves as the holder of the lease."""
    async with opened(settings, lease) as plane:
        await serve(
            settings,
            [NAME],
            partial(_register, settings, plane),
            internal_names=list(BEHIND.values()),
            lifespan=plane.at_work,
            watch_seconds=settings.watch_seconds,
        )


def _register(
    settings: ModelMgmtSettings, plane: Plane, server: grpc.aio.Server, health: Health
) -> None:
    servicer = ModelManagementServicer(
        plane.files,
        plane.lifecycle,
        plane.reconciler,
        plane.demand,
        ModelWatch(plane.states),
        health.watches,
        chunk_bytes=settings.chunk_bytes,
        max_file_streams=settings.max_file_streams,
    )
    add_servicer(servicer, server)
    worker_pb2_grpc.add_ModelDemandServicer_to_server(ModelDemandServicer(plane.demand), server)


if __name__ == "__main__":
    main("model_mgmt_svc", ModelMgmtSettings, run)
