"""The tonic client as the benchmarks' client: the load generator of clients/rust."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tools.cargo import NoCargoError, build_load_generator

CLIENTS = ("auto", "python", "rust")
# What the tables call the clients.
TONIC, PYTHON, PYTHON_HTTP, IN_PROCESS = "tonic", "Python gRPC", "Python HTTP", "in process"


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option that chooses the client of our services."""
    parser.add_argument(
        "--client",
        choices=CLIENTS,
        default="auto",
        help="what drives our services; auto is the tonic client where it builds",
    )


class RustClient:
    """The load generator, built."""

    def __init__(self, program: Path) -> None:
        self._program = program

    @classmethod
    def chosen(cls, option: str) -> RustClient | None:
        """The tonic client where it is wanted and can be had; says why where it cannot.

        Raises:
            SystemExit: it is demanded and cannot be had.
        """
        if option == "python":
            return None
        print("building the tonic client", flush=True)
        try:
            return cls(build_load_generator())
        except NoCargoError as error:
            if option == "rust":
                sys.exit(f"there is no tonic client: {error}")
            print(f"the Python client is used, for there is no tonic client: {error}", flush=True)
            return None

    async def run(self, kind: str, **plan: Any) -> dict[str, Any]:
        """Runs one plan of the load generator and returns its samples.

        Raises:
            RuntimeError: a call failed; the message is the load generator's.
        """
        process = await asyncio.create_subprocess_exec(
            str(self._program),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            written, said = await process.communicate(json.dumps({"kind": kind} | plan).encode())
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise RuntimeError(f"the load generator failed: {said.decode().strip()}")
        outcome: dict[str, Any] = json.loads(written)
        return outcome
