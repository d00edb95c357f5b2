"""Drains a replica by hand: `python -m shared.rpc.drain_command HOST:PORT [--undo]`."""

from __future__ import annotations

import argparse
import sys

import grpc

from ml.internal import worker_pb2, worker_pb2_grpc

_CONNECT_SECONDS = 5.0


def drain(address: str) -> int:
    """Drains the replica at host:port, and prints its calls in flight until there are none.

    Returns:
        0 once it is empty; 1 if it cannot be reached, or the drain was ended meanwhile.
    """
    with _channel(address) as channel:
        stub = worker_pb2_grpc.ModelWorkerStub(channel)
        try:
            grpc.channel_ready_future(channel).result(_CONNECT_SECONDS)
            for report in stub.Drain(worker_pb2.DrainRequest()):
                calls = report.calls_in_flight
                _say(f"{address} takes no new calls; {calls} in flight")
        except (grpc.RpcError, grpc.FutureTimeoutError) as error:
            return _failed(address, error)
        except KeyboardInterrupt:
            _say(f"{address} stays drained")
            return 1
    _say(f"{address} is empty: end it, or take the drain back")
    return 0


def undrain(address: str) -> int:
    """Lets the replica at host:port take calls again; returns 1 if it cannot be reached."""
    with _channel(address) as channel:
        try:
            stub = worker_pb2_grpc.ModelWorkerStub(channel)
            stub.Undrain(worker_pb2.UndrainRequest(), timeout=_CONNECT_SECONDS)
        except grpc.RpcError as error:
            return _failed(address, error)
    _say(f"{address} takes calls again")
    return 0


def _channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])


def _failed(address: str, error: Exception) -> int:
    why = error.details() if isinstance(error, grpc.Call) else "it cannot be reached"
    _say(f"{address}: {why}")
    return 1


def _say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m shared.rpc.drain_command")
    parser.add_argument("address", metavar="HOST:PORT", help="the internal port of the replica")
    parser.add_argument("--undo", action="store_true", help="let it take calls again")
    options = parser.parse_args()
    sys.exit((undrain if options.undo else drain)(options.address))


if __name__ == "__main__":
    main()
