"""Reports the health of the services behind this one by watching their replicas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

import grpc
from grpc_health.v1 import health_pb2

from model_mgmt_svc.replicas import Replica, Replicas
from shared.pipelines import ServiceName
from shared.rpc.server import Health

log = logging.getLogger(__name__)

# Between attempts to watch a replica, and between checks for new replicas.
RETRY_SECONDS = 1.0

_SERVING = health_pb2.HealthCheckResponse.SERVING


class HealthWatch:
    """Reports a service as SERVING while at least one of its replicas is.

    Args:
        replicas: the replicas to watch.
        names: the full gRPC name of each service.
        health: where the result is published.
        on_waiting: called while a replica is up but not serving: it may wait for its admission.
    """

    def __init__(
        self,
        replicas: Replicas,
        names: Mapping[ServiceName, str],
        health: Health,
        on_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._replicas = replicas
        self._names = names
        self._health = health
        self._on_waiting = on_waiting
        self._serving: dict[Replica, bool] = {}
        self._watches: dict[Replica, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Watches until cancelled."""
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
        """Starts to watch new replicas and stops watching those that are gone."""
        current = {replica for replica in self._replicas.all() if replica.service in self._names}
        for replica in set(self._watches) - current:
            self._watches.pop(replica).cancel()
            await self._set(replica, serving=False)
            del self._serving[replica]
        for replica in current - set(self._watches):
            self._watches[replica] = asyncio.create_task(self._watch(replica))

    async def _watch(self, replica: Replica) -> None:
        watch = replica.channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        request = health_pb2.HealthCheckRequest(service=self._names[replica.service])
        while True:
            call = watch(request, wait_for_ready=True)
            try:
                async for answer in call:
                    serving = answer.status == _SERVING
                    await self._set(replica, serving)
                    if not serving:
                        self._on_waiting()
                        break
            except grpc.aio.AioRpcError:
                await self._set(replica, serving=False)
            finally:
                call.cancel()  # an open watch delays the shutdown of its server
            await asyncio.sleep(RETRY_SECONDS)

    async def _set(self, replica: Replica, serving: bool) -> None:
        if self._serving.get(replica) != serving:
            self._serving[replica] = serving
            log.info(
                "service health",
                extra={"upstream": replica.service, "address": replica.address, "serving": serving},
            )
            await self._publish(replica.service)

    async def _publish(self, service: ServiceName) -> None:
        serving = any(up for replica, up in self._serving.items() if replica.service == service)
        await self._health.set(self._names[service], serving)
