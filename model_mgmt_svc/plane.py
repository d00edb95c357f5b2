"""The control plane: its parts, what each of them is given, and which run by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

from model_mgmt_svc.auto_load import AutoLoad
from model_mgmt_svc.demand import Demand
from model_mgmt_svc.demand_line import Line
from model_mgmt_svc.desired import DesiredModels
from model_mgmt_svc.file_models import FileModels
from model_mgmt_svc.health import HealthWatch
from model_mgmt_svc.keep_alive import KeepAlive
from model_mgmt_svc.lease import Lease
from model_mgmt_svc.lifecycle import Lifecycle
from model_mgmt_svc.reconciler import Reconciler
from model_mgmt_svc.replicas import Replicas
from model_mgmt_svc.resolve import resolve_unasked
from model_mgmt_svc.settings import ModelMgmtSettings
from model_mgmt_svc.status import ModelStates
from shared.files.client import ModelFiles
from shared.files.fetch import FetchLimits
from shared.files.space import CacheSpace
from shared.pipelines import ServiceName
from shared.rpc.server import Health

# The services behind this one: the proxy asks here for their health and reflection.
BEHIND: dict[ServiceName, str] = {"text": "ml.TransformersService", "vision": "ml.MediapipeService"}


@dataclass(frozen=True)
class Plane:
    """The parts that the holder of the lease has, see their modules."""

    files: ModelFiles
    replicas: Replicas
    lifecycle: Lifecycle
    reconciler: Reconciler
    demand: Demand
    file_models: FileModels
    keep_alive: KeepAlive
    states: ModelStates

    @contextlib.asynccontextmanager
    async def at_work(self, health: Health) -> AsyncIterator[None]:
        """What runs by itself does so within this context."""
        watch = HealthWatch(self.replicas, BEHIND, health, on_waiting=self.reconciler.wake)
        tasks = [
            asyncio.create_task(each.run())
            for each in (self.reconciler, watch, self.file_models, self.keep_alive)
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self.demand.aclose()


@contextlib.asynccontextmanager
async def opened(settings: ModelMgmtSettings, lease: Lease) -> AsyncIterator[Plane]:
    """The parts, which are closed at the end."""
    addresses: dict[ServiceName, str] = {
        "text": settings.text_addrs,
        "vision": settings.vision_addrs,
    }
    desired = DesiredModels(settings.state_dir / "desired_models.json", lease)
    space = CacheSpace.of(
        settings, settings.cache_dir, kept=lambda: [model.files_id for model in desired.all()]
    )
    limits = FetchLimits.of(settings)
    async with (
        desired,
        ModelFiles(
            settings.file_provider_addr, settings.cache_dir, limits=limits, space=space
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
        yield _over(settings, desired, files, replicas, lifecycle)


def _over(
    settings: ModelMgmtSettings,
    desired: DesiredModels,
    files: ModelFiles,
    replicas: Replicas,
    lifecycle: Lifecycle,
) -> Plane:
    """The parts that need no closing, over those that do."""
    auto_load = AutoLoad.parse(settings.auto_load)
    interval = settings.reconcile_seconds
    reconciler = Reconciler(
        replicas,
        desired,
        lifecycle,
        interval=interval,
        max_failures=settings.max_load_failures,
        clock=time.monotonic,
        auto_load=auto_load.on,
    )
    line = Line(
        wait_seconds=settings.auto_load_wait_seconds,
        idle_seconds=settings.auto_load_idle_seconds,
        clock=time.monotonic,
    )
    resolve = partial(resolve_unasked, files)
    demand = Demand(auto_load, line, desired, lifecycle, reconciler, resolve)
    file_models = FileModels(
        settings.models_file, files, desired, lifecycle, reconciler, interval=interval
    )
    states = ModelStates(
        desired,
        lifecycle,
        reconciler,
        keep_alive=settings.keep_alive,
        waiting=file_models.waiting,
        demand=demand,
    )
    keep_alive = KeepAlive(desired, lifecycle, keep_alive=settings.keep_alive, interval=interval)
    return Plane(
        files,
        replicas,
        lifecycle,
        reconciler,
        demand,
        file_models,
        keep_alive,
        states,
    )
