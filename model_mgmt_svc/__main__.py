"""Starts model_mgmt_svc: `python -m model_mgmt_svc`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from functools import partial

import grpc

from ml import (  # noqa: F401  # imported so that reflection can describe the services behind
    mediapipe_pb2,
    model_management_pb2,
    transformers_pb2,
)
from ml.internal import worker_pb2_grpc
from model_mgmt_svc.auto_load import AutoLoad
from model_mgmt_svc.demand import Demand
from model_mgmt_svc.demand_line import Line
from model_mgmt_svc.desired import DesiredModels
from model_mgmt_svc.file_models import FileModels
from model_mgmt_svc.health import HealthWatch
from model_mgmt_svc.keep_alive import KeepAlive
from model_mgmt_svc.lease import Lease
from model_mgmt_svc.lifecycle import Lifecycle
from model_mgmt_svc.model_watch import ModelWatch
from model_mgmt_svc.reconciler import Reconciler
from model_mgmt_svc.replicas import Replicas
from model_mgmt_svc.resolve import resolve_unasked
from model_mgmt_svc.service import (
    NAME,
    ModelDemandServicer,
    ModelManagementServicer,
    add_servicer,
)
from model_mgmt_svc.settings import ModelMgmtSettings
from model_mgmt_svc.status import ModelStates
from shared.files.client import ModelFiles
from shared.files.fetch import FetchLimits
from shared.files.space import CacheSpace
from shared.pipelines import ServiceName
from shared.rpc.server import Health, main, serve
from shared.rpc.standby import serve_as_standby

_SERVICE = model_management_pb2.DESCRIPTOR.services_by_name["ModelManagementService"]
# The services behind this one: the proxy asks here for their health and reflection.
BEHIND: dict[ServiceName, str] = {"text": "ml.TransformersService", "vision": "ml.MediapipeService"}


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
    addresses: dict[ServiceName, str] = {
        "text": settings.text_addrs,
        "vision": settings.vision_addrs,
    }
    auto_load = AutoLoad.parse(settings.auto_load)
    desired = DesiredModels(settings.state_dir / "desired_models.json", lease)
    space = CacheSpace.of(
        settings, settings.cache_dir, kept=lambda: [model.files_id for model in desired.all()]
    )
    async with (
        desired,
        ModelFiles(
            settings.file_provider_addr,
            settings.cache_dir,
            limits=FetchLimits.of(settings),
            space=space,
        ) as files,
        Replicas(addresses, lease) as replicas,
        contextlib.aclosing(
            Lifecycle(
                replicas,
                desired,
                files.refresh,
                max_loads=settings.max_loads,
                start_seconds=settings.start_seconds,
            )
        ) as lifecycle,
    ):
        reconciler = Reconciler(
            replicas,
            desired,
            lifecycle,
            interval=settings.reconcile_seconds,
            max_failures=settings.max_load_failures,
            clock=time.monotonic,
            auto_load=auto_load.on,
        )
        line = Line(
            wait_seconds=settings.auto_load_wait_seconds,
            idle_seconds=settings.auto_load_idle_seconds,
            clock=time.monotonic,
        )
        demand = Demand(
            auto_load, line, desired, lifecycle, reconciler, partial(resolve_unasked, files)
        )

        file_models = FileModels(
            settings.models_file,
            files,
            desired,
            lifecycle,
            reconciler,
            interval=settings.reconcile_seconds,
        )
        keep_alive = KeepAlive(
            desired,
            lifecycle,
            keep_alive=settings.keep_alive,
            interval=settings.reconcile_seconds,
        )
        states = ModelStates(
            desired,
            lifecycle,
            reconciler,
            keep_alive=settings.keep_alive,
            waiting=file_models.waiting,
            demand=demand,
        )

        def register(server: grpc.aio.Server, health: Health) -> None:
            servicer = ModelManagementServicer(
                files,
                lifecycle,
                reconciler,
                demand,
                ModelWatch(states),
                health.watches,
                chunk_bytes=settings.chunk_bytes,
                max_file_streams=settings.max_file_streams,
            )
            add_servicer(servicer, server)
            worker_pb2_grpc.add_ModelDemandServicer_to_server(ModelDemandServicer(demand), server)

        @contextlib.asynccontextmanager
        async def background(health: Health) -> AsyncIterator[None]:
            watch = HealthWatch(replicas, BEHIND, health, on_waiting=reconciler.wake)
            tasks = [
                asyncio.create_task(each.run())
                for each in (reconciler, watch, file_models, keep_alive)
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                await demand.aclose()

        await serve(
            settings,
            [NAME],
            register,
            internal_names=list(BEHIND.values()),
            lifespan=background,
            watch_seconds=settings.watch_seconds,
        )


if __name__ == "__main__":
    main("model_mgmt_svc", ModelMgmtSettings, run)
