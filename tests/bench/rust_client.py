"""The tonic client as the benchmarks' client: the load generator of clients/rust."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.cargo import NoCargoError, build_load_generator

CLIENTS = ("auto", "python", "rust")
# What the tables call the clients.
TONIC, PYTHON, PYTHON_HTTP, IN_PROCESS = "tonic", "Python gRPC", "Python HTTP", "in process"

MARKS = ("begin", "end")


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

    def run(
        self, kind: str, on_mark: Callable[[str], None] | None = None, **plan: Any
    ) -> dict[str, Any]:
        """Runs one plan of the load generator and returns its samples.

        Args:
            kind: of the plan.
            on_mark: called with "begin" and "end" of the measured time of a video.
            plan: as `clients/rust/src/bin/loadgen` reads it.

        Raises:
            RuntimeError: a call failed; the message is the load generator's.
        """
        said = []
        pipe = subprocess.PIPE
        with (
            tempfile.TemporaryFile() as samples,
            subprocess.Popen((self._program,), stdin=pipe, stdout=samples, stderr=pipe) as process,
        ):
            assert process.stdin
            assert process.stderr
            try:
                process.stdin.write(json.dumps({"kind": kind} | plan).encode())
                process.stdin.close()
                for line in process.stderr:
                    said.append(line.decode().strip())
                    if on_mark and said[-1] in MARKS:
                        on_mark(said[-1])
            except BaseException:
                process.kill()
                raise
            if process.wait():
                raise RuntimeError(f"the load generator failed: {' '.join(said)}")
            samples.seek(0)
            outcome: dict[str, Any] = json.load(samples)
        return outcome
