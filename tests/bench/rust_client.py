"""The benchmarks' tonic client: the load generator of clients/rust/loadgen."""

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
        """The tonic client if the option allows it and it can be built; prints why if it cannot.

        Raises:
            SystemExit: the option requires it and it cannot be built.
        """
        if option == "python":
            return None
        print("building the tonic client", flush=True)
        try:
            return cls(build_load_generator())
        except NoCargoError as error:
            if option == "rust":
                sys.exit(f"the tonic client is not available: {error}")
            print(
                f"using the Python client, the tonic client is not available: {error}", flush=True
            )
            return None

    def run(
        self, kind: str, on_mark: Callable[[str], None] | None = None, **plan: Any
    ) -> dict[str, Any]:
        """Runs one plan of the load generator and returns its samples.

        Args:
            kind: the kind of plan.
            on_mark: called with "begin" and "end" when a video's measured time begins and ends.
            plan: its fields, as `clients/rust/loadgen` reads them.

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
