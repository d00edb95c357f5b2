"""A client of ml.internal.ModelDemand: how a service asks for a model that a call needs."""

from __future__ import annotations

from typing import Self

import grpc

from ml.internal import worker_pb2, worker_pb2_grpc
from shared.errors import ServiceError, UnavailableError
from shared.model_ids import ModelId
from shared.rpc.channels import MODEL_MANAGEMENT, connect
from shared.rpc.status import from_details
from shared.telemetry.tracing import outgoing_metadata

# A model_mgmt_svc that hangs is found within these two together, in place of the usual 40 s: calls
# wait for it.
_PING_SECONDS = 10
_PONG_SECONDS = 5


class ModelDemandClient:
    """Asks model_mgmt_svc for models. An async context manager that closes the connection.

    Args:
        address: its host:port.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> Self:
        self._channel = connect(
            self._address,
            options=[
                ("grpc.keepalive_time_ms", _PING_SECONDS * 1000),
                ("grpc.keepalive_timeout_ms", _PONG_SECONDS * 1000),
            ],
            serving=MODEL_MANAGEMENT,
        )
        self._stub = worker_pb2_grpc.ModelDemandStub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def want(self, model_id: ModelId, call: str) -> None:
        """Returns when a model is READY on the replicas of its service.

        Args:
            model_id: the model.
            call: the RPC that needs it.

        Raises:
            UnavailableError: model_mgmt_svc is not reachable.
            ServiceError: why the model cannot be had.
        """
        request = worker_pb2.WantRequest(model_id=model_id, call=call)
        try:
            await self._stub.Want(request, metadata=outgoing_metadata())
        except grpc.aio.AioRpcError as error:
            raise from_details(error) or _unreachable(model_id) from error
        except grpc.aio.UsageError as error:  # the channel is closed
            raise _unreachable(model_id) from error


def _unreachable(model_id: ModelId) -> ServiceError:
    return UnavailableError(
        f"model {model_id} is not loaded, and model_mgmt_svc, which loads it for calls, is not "
        "reachable"
    )
