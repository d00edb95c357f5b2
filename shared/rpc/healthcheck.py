"""Health check of a container's server: `python -m shared.rpc.healthcheck TEXT [NAME]`.

TEXT is the prefix of the service's variables; TEXT_HOST and TEXT_PORT are its address. NAME is the
full name of a gRPC service, which may still wait for its admission when the process serves already.
The exit code is 0 for SERVING and 1 otherwise.

To be removed when the images contain a probe of their own (grpc_health_probe is a separate binary).
"""

from __future__ import annotations

import os
import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_TIMEOUT_SECONDS = 4.0
_ANY_ADDRESS = "0.0.0.0"  # noqa: S104  # compared with, not listened on


def is_serving(address: str, name: str = "") -> bool:
    """Whether the server at host:port reports a service, or the whole process, as SERVING."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types name no methods
        try:
            answer = stub.Check(
                health_pb2.HealthCheckRequest(service=name), timeout=_TIMEOUT_SECONDS
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main() -> None:
    """Entry point."""
    prefix, name, *_ = *sys.argv[1:], ""
    host, port = os.environ[f"{prefix}_HOST"], os.environ[f"{prefix}_PORT"]
    sys.exit(not is_serving(f"{'127.0.0.1' if host == _ANY_ADDRESS else host}:{port}", name))


if __name__ == "__main__":
    main()
