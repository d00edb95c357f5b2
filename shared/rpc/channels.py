"""Client channels between the services, with the options that both ends use."""

from __future__ import annotations

import json
from collections.abc import Sequence

import grpc

# The service of model_mgmt_svc, of which a standby is NOT_SERVING.
MODEL_MANAGEMENT = "ml.ModelManagementService"
# Largest message on connections between the services.
MAX_MESSAGE_BYTES = 64 << 20


def client_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> list[tuple[str, int]]:
    """Channel options: message limits, and quick reconnects since the peers are near.

    HTTP proxies from the environment are ignored: container engines set one, and it cannot reach
    the services.
    """
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.enable_http_proxy", 0),
    ]


def connect(
    address: str,
    *,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    options: Sequence[tuple[str, int]] = (),
    serving: str = "",
) -> grpc.aio.Channel:
    """A channel to another service. It connects on first use; the caller closes it.

    Args:
        address: its host:port.
        interceptors: of its calls.
        options: more options, or others than those of `client_options`.
        serving: full name of a gRPC service: of several addresses, only those take calls that
            report it as SERVING, or have no health service.
    """
    chosen: dict[str, int | str] = {**dict(client_options()), **dict(options)}
    if serving:
        config = {
            "loadBalancingConfig": [{"round_robin": {}}],  # pick_first asks for no health
            "healthCheckConfig": {"serviceName": serving},
        }
        chosen["grpc.service_config"] = json.dumps(config)
    return grpc.aio.insecure_channel(
        address,
        options=list(chosen.items()),
        interceptors=list(interceptors) or None,
    )
