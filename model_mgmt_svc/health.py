"""Answers health for the services behind this one, by watching them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

import grpc
from grpc_health.v1 import health_pb2

from model_mgmt_svc.replicas import (
    Worker,
    Workers,
)
from shared.pipelines import ServiceName
from shared.rpc.server import Health

log = logging.getLogger(__name__)

# Between two attempts to watch a replica, and between two looks at which replicas there are.
RETRY_SECONDS = 1.0

_SERVING = health_pb2.HealthCheckResponse.SERVING


class HealthWatch:
    """Says of a service that it serves while one of its replicas does.

    Args:
        workers: the replicas.
        names: the full name of each service, as health calls name it.
        health: where the answers go.
        on_waiting: called while a replica is up and does not serve: it may wait to be let in.
    """

    def __init__(
        self,
        workers: Workers,
        names: Mapping[ServiceName, str],
        health: Health,
        on_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._workers = workers
        self._names = names
        self._health = health
        self._on_waiting = on_waiting
        self._serving: dict[Worker, bool] = {}
        self._watches: dict[Worker, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Watches until it is cancelled."""
        for service in self._names:
            await self._publish(service)
        try:
            while True:
                await self._follow_replicas()
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            for watch in self._watches.values():
                watch.cancel()

    async def _follow_replicas(self) -> None:
        """Begins to watch new replicas and stops with those that are gone."""
        current = {worker for worker in self._workers.all() if worker.service in self._names}
        for worker in set(self._watches) - current:
            self._watches.pop(worker).cancel()
            await self._set(worker, serving=False)
            del self._serving[worker]
        for worker in current - set(self._watches):
            self._watches[worker] = asyncio.create_task(self._watch(worker))

    async def _watch(self, worker: Worker) -> None:
        watch = worker.channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        request = health_pb2.HealthCheckRequest(service=self._names[worker.service])
        while True:
            call = watch(request, wait_for_ready=True)
            try:
                async for answer in call:
                    serving = answer.status == _SERVING
                    await self._set(worker, serving)
                    if not serving:
                        self._on_waiting()
                        break
            except grpc.aio.AioRpcError:
                await self._set(worker, serving=False)
            finally:
                call.cancel()  # an open watch would hold up a server that stops
            await asyncio.sleep(RETRY_SECONDS)

    async def _set(self, worker: Worker, serving: bool) -> None:
        if self._serving.get(worker) != serving:
            self._serving[worker] = serving
            log.info(
                "service health",
                extra={"worker": worker.service, "address": worker.address, "serving": serving},
            )
            await self._publish(worker.service)

    async def _publish(self, service: ServiceName) -> None:
        serving = any(up for worker, up in self._serving.items() if worker.service == service)
        await self._health.set(self._names[service], serving)
