"""What http_svc costs over gRPC: milliseconds of a request, and CPU of a token.

`python -m tests.bench.bench_door` prints a table and writes out/bench/door.json and .md. The model
is the stub of bench_link, so that what is left is the way to it. Two arms take turns: gRPC to the
stub, and HTTP to http_svc, which calls the stub by gRPC; Envoy is in front of neither. The time of
a request is that of an embedding of one text, by one caller, with a client that blocks. The CPU of
a token is what the process of http_svc used while some callers read streams of completions.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil

from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc
from stack.ports import accepts
from tests.bench.bench_link import TEXT, Child
from tests.bench.machine import quiet_machine
from tests.bench.results import parser_of, publish
from tests.support.processes import free_port
from tests.support.stack import ROOT, wait_for

# The goals: of a request's median, and of a token.
GOAL_REQUEST_MS, GOAL_TOKEN_MS = 1.5, 0.15


@contextmanager
def door(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """http_svc in front of the stub: its port and its process."""
    port = free_port()
    environment = {
        **os.environ,
        "HTTP_PORT": str(port),
        "HTTP_METRICS_PORT": "0",
        "HTTP_TEXT_ADDR": f"unix:{folder}/gRPC.sock",
        "HTTP_DRAIN_SECONDS": "0",
    }
    command = (sys.executable, "-m", "http_svc")
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for("the start of http_svc", lambda: accepts(port))
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def times(call: Callable[[], None], count: int) -> list[float]:
    """Milliseconds of each of `count` calls."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        found.append(1000 * (time.perf_counter() - start))
    return found


def over_grpc(stub: transformers_pb2_grpc.TransformersServiceStub) -> Callable[[], None]:
    """An embedding of one text over gRPC."""
    request = pb.GenerateEmbeddingsRequest(model="m", texts=[TEXT])
    return lambda: stub.GenerateEmbeddings(request)


def over_http(connection: http.client.HTTPConnection) -> Callable[[], None]:
    """The same over HTTP, base64 as clients ask for it."""
    body = json.dumps({"model": "m", "input": TEXT, "encoding_format": "base64"})

    def call() -> None:
        connection.request("POST", "/v1/embeddings", body)
        answer = connection.getresponse()
        data = answer.read()
        assert answer.status == 200, data

    return call


async def read_stream(port: int, tokens: int) -> None:
    """Reads a stream of completions to its end."""
    body = json.dumps({"model": "m", "prompt": TEXT, "max_tokens": tokens, "stream": True})
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write((head + body).encode())
    try:
        seen = await reader.readuntil(b"data: [DONE]\n\n")
    finally:
        writer.close()
    assert seen.count(b"data: ") == tokens + 2  # the end of the text, and [DONE]


def token_ms(port: int, process: psutil.Process, options: argparse.Namespace) -> float:
    """CPU milliseconds of http_svc for a token."""

    async def all_callers() -> None:
        await asyncio.gather(*(read_stream(port, options.tokens) for _ in range(options.callers)))

    before = sum(process.cpu_times()[:2])
    asyncio.run(all_callers())
    return 1000 * (sum(process.cpu_times()[:2]) - before) / (options.callers * options.tokens)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The figures of all rounds."""
    medians: dict[str, list[float]] = {"gRPC": [], "HTTP": []}
    tokens: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-door-") as name, ExitStack() as opened:
        folder = Path(name)
        stub_process = Child("gRPC", folder)
        opened.callback(stub_process.end)
        port, process = opened.enter_context(door(folder))
        channel = opened.enter_context(grpc.insecure_channel(f"unix:{folder}/gRPC.sock"))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        opened.callback(connection.close)
        arms = {
            "gRPC": over_grpc(transformers_pb2_grpc.TransformersServiceStub(channel)),
            "HTTP": over_http(connection),
        }
        for number in range(-1, options.rounds):  # the first warms up
            for arm in list(arms)[:: -1 if number % 2 else 1]:
                median = statistics.median(times(arms[arm], options.calls))
                if number >= 0:
                    medians[arm].append(median)
            spent = token_ms(port, process, options)
            if number >= 0:
                tokens.append(spent)
    return {
        "request_p50_ms": {arm: statistics.median(found) for arm, found in medians.items()},
        "token_cpu_ms": statistics.median(tokens),
        "all_rounds": {"request_p50_ms": medians, "token_cpu_ms": tokens},
    }


def table(report: dict[str, Any]) -> str:
    """Markdown."""
    grpc_ms, http_ms = (report["request_p50_ms"][arm] for arm in ("gRPC", "HTTP"))
    cost, token = http_ms - grpc_ms, report["token_cpu_ms"]
    lines = [
        "| | gRPC | HTTP | http_svc costs | at most |",
        "|---|---:|---:|---:|---:|",
        f"| a request, p50 ms | {grpc_ms:.2f} | {http_ms:.2f} | {cost:.2f} | {GOAL_REQUEST_MS} |",
        f"| a token, CPU ms of http_svc | | | {token:.3f} | {GOAL_TOKEN_MS} |",
    ]
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = parser_of(__doc__)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=600, help="tokens of a generation")
    parser.add_argument("--calls", type=int, default=1000, help="embedding calls of a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with quiet_machine(busy=options.busy) as machine:
        report = measure(options)
    publish(options.out, "door", machine, report, table(report))


if __name__ == "__main__":
    main()
