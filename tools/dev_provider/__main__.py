"""Serves a model folder until it is asked to stop."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import grpc

from shared.rpc.interceptors import ErrorInterceptor
from tools.dev_provider.files import ModelFolder
from tools.dev_provider.service import Fields, FileProvider, add_to_server

_GRACE_SECONDS = 1.0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.dev_provider", description=__doc__)
    parser.add_argument(
        "--root",
        type=Path,
        required=True,
        help="holds ORG/NAME/FILE, and ORG/NAME@REVISION/FILE for a revision other than main",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=50052)
    parser.add_argument("--no-offset", action="store_true", help="ignore the field offset")
    parser.add_argument("--no-sha256", action="store_true", help="send no hashes")
    parser.add_argument("--no-revision", action="store_true", help="ignore the field revision")
    return parser.parse_args()


async def serve(options: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=[("grpc.so_reuseport", 0)])
    fields = Fields(
        offset=not options.no_offset,
        sha256=not options.no_sha256,
        revision=not options.no_revision,
    )
    provider = FileProvider(ModelFolder(options.root), fields)
    add_to_server(provider, server)
    try:
        server.add_insecure_port(f"{options.host}:{options.port}")
    except RuntimeError:
        sys.exit(f"cannot listen on {options.host}:{options.port}: the port is in use")
    await server.start()
    sys.stdout.write(f"serving {options.root} on {options.host}:{options.port}\n")
    await stop.wait()
    await server.stop(_GRACE_SECONDS)


if __name__ == "__main__":
    asyncio.run(serve(parse_arguments()))
