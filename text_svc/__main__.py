"""Starts text_svc: `python -m text_svc`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from prometheus_client import REGISTRY

from ml.internal import worker_pb2_grpc
from shared.files.client import ModelFiles
from shared.files.fetch import FetchLimits
from shared.files.space import CacheSpace
from shared.model_host import ModelNames, Restores
from shared.rpc.admission import Admission
from shared.rpc.channels import MODEL_MANAGEMENT
from shared.rpc.drain import Drain
from shared.rpc.model_demand import ModelDemandClient
from shared.rpc.model_worker import MODEL_WORKER_NAME, ModelWorkerServicer
from shared.rpc.server import (
    Health,
    main,
    serve,
)
from text_svc.metrics import ModelCollector
from text_svc.models.conversion import converted_dir
from text_svc.models.demand import Demand
from text_svc.models.registry import Registry
from text_svc.processes import sandbox
from text_svc.service import NAME, TransformersForwarder
from text_svc.settings import TextSettings


async def run(settings: TextSettings) -> None:
    """Serves until it is told to stop."""
    sandbox.check(settings.sandbox)
    files = ModelFiles(
        settings.file_provider_addr,
        settings.cache_dir,
        limits=FetchLimits.of(settings),
        serving=MODEL_MANAGEMENT,
        space=CacheSpace.of(
            settings,
            settings.cache_dir,
            converted=converted_dir(settings),
            store=settings.store_dir,
        ),
    )
    restores, names = Restores(), ModelNames()
    admission, drain = Admission(settings.admission_seconds), Drain()
    control_plane = ModelDemandClient(settings.file_provider_addr)
    demand = Demand(control_plane.want, settings.max_waiting_for_models, settings.caller_weights)
    registry = Registry(settings, files, restores, admission, demand)
    REGISTRY.register(ModelCollector(registry))

    def register(server: grpc.aio.Server, _: Health) -> None:
        TransformersForwarder(registry, names).register(server)
        worker_pb2_grpc.add_ModelWorkerServicer_to_server(
            ModelWorkerServicer(admission, registry, restores, names, drain), server
        )

    @asynccontextmanager
    async def lifespan(_: Health) -> AsyncIterator[None]:
        async with files, control_plane, registry:
            yield

    await serve(
        settings,
        [NAME],
        register,
        internal_names=[MODEL_WORKER_NAME],
        lifespan=lifespan,
        admission=admission,
        drain=drain,
    )


if __name__ == "__main__":
    main("text_svc", TextSettings, run)
