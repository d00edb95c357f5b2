"""GetModelFile beside a bare gRPC stream of the same chunks, and how long a model of 1 GB loads.

`python -m tests.bench.bench_files` prints a table and writes out/bench/files.json and .md. One
client reads the same file over and over; three arms take turns:

* `bare`: a grpc.aio server that makes the same messages from memory, and does nothing else;
* `service`: model_mgmt_svc, from its cache, with the hash checked as it goes;
* `Envoy`: the same through Envoy, as callers have it.

The ratio of each round is that of neighbours in time, and the CPU time of each process says what
limits them. Then an encoder with random weights is loaded
through Envoy: cold, when no cache has its files, and warm, when all have them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil

from ml import model_management_pb2 as pb
from ml import model_management_pb2_grpc
from tests.bench.machine import quiet_machine
from tests.bench.results import parser_of, publish
from tests.support.processes import free_port, process, ready_channel
from tests.support.providers import CHUNK_BYTES
from tests.support.stack import MODEL_MGMT, TEXT, Stack, open_aio_channel, stack_in
from tests.support.tiny_parts import SMALL, bert_tokenizer, save

ARMS = ("bare", "service", "Envoy")
FILE_MODEL, FILE_NAME = "bench/file", "model.safetensors"
ENCODER = "bench/encoder"
SAMPLE_SECONDS = 0.05
# CPU seconds by process.
Cpu = dict[str, float]
# An encoder's layer of these sizes has 33.6 million weights, 128 MiB in float32.
HIDDEN, INNER, LAYER_BYTES = 1024, 14_336, 4 * (4 * 1024 * 1024 + 2 * 1024 * 14_336)


class BareServer(model_management_pb2_grpc.ModelManagementServiceServicer):
    """Makes the messages of a file from one block of memory."""

    def __init__(self, size: int) -> None:
        self._size = size

    async def GetModelFile(
        self, request: pb.ModelFileRequest, context: object
    ) -> AsyncIterator[pb.ModelFileChunk]:
        block = random.Random(1).randbytes(CHUNK_BYTES)
        for start in range(0, self._size, CHUNK_BYTES):
            data = block[: self._size - start]
            is_last = start + len(data) == self._size
            yield pb.ModelFileChunk(data=data, offset=start, total_size=self._size, is_last=is_last)


async def serve_bare(port: int, size: int) -> None:
    """Serves until it is killed, or the process that started it is gone."""
    parent = os.getppid()
    server = grpc.aio.server()
    model_management_pb2_grpc.add_ModelManagementServiceServicer_to_server(BareServer(size), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    while os.getppid() == parent:
        await asyncio.sleep(1)
    await server.stop(None)


async def read_file(channel: grpc.aio.Channel) -> float:
    """Megabytes a second of one whole file."""
    stub = model_management_pb2_grpc.ModelManagementServiceStub(channel)
    start, received = time.perf_counter(), 0
    call = stub.GetModelFile(pb.ModelFileRequest(model_id=FILE_MODEL, file_path=FILE_NAME))
    async for chunk in call:
        received += len(chunk.data)
    return received / 1e6 / (time.perf_counter() - start)


def cpu_seconds(pids: dict[str, int]) -> Cpu:
    """What each process has used so far, user and system."""
    times = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
    return {name: each.user + each.system for name, each in times.items()}


@contextlib.contextmanager
def peak_memory(pids: dict[str, int]) -> Iterator[dict[str, list[float]]]:
    """MiB of each process at the start and at most until the end."""
    processes = {name: psutil.Process(pid) for name, pid in pids.items()}

    def now(name: str) -> float:
        return processes[name].memory_info().rss / (1 << 20)

    seen = {name: [now(name), 0.0] for name in pids}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            for name, figures in seen.items():
                figures[1] = max(figures[1], now(name))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


async def measure_streams(stack: Stack, size: int, rounds: int) -> dict[str, Any]:
    """The speed of each arm by round, and the memory of what is in front of the file."""
    port = free_port()
    command = ("-m", "tests.bench.bench_files", "--serve", str(port), str(size))
    with process(*command, env={}) as child:
        async with (
            ready_channel(f"127.0.0.1:{port}") as bare,
            open_aio_channel(stack.addresses["model_mgmt"]) as service,
            open_aio_channel(stack.addresses["envoy"]) as envoy,
        ):
            channels = dict(zip(ARMS, (bare, service, envoy), strict=True))
            for channel in channels.values():  # fills the cache, and opens connections
                await read_file(channel)
            speeds: dict[str, list[float]] = {arm: [] for arm in ARMS}
            cpu: dict[str, list[Cpu]] = {arm: [] for arm in ARMS}
            pids = {name: stack.pids[name] for name in ("model_mgmt_svc", "envoy")}
            ends = {"client": os.getpid(), "bare": child.pid, **pids}
            with peak_memory(pids) as memory:
                for _ in range(rounds):
                    for arm, channel in channels.items():
                        before = cpu_seconds(ends)
                        speeds[arm].append(await read_file(channel))
                        used = {name: end - before[name] for name, end in cpu_seconds(ends).items()}
                        cpu[arm].append({name: each * 1e9 / size for name, each in used.items()})
    return {"mb_per_second": speeds, "cpu_seconds_per_gb": cpu, "memory_mb": memory}


def make_encoder(folder: Path, size: int) -> None:
    """A BERT with random weights of about `size` bytes."""
    import transformers

    tokenizer = bert_tokenizer()
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": 16}
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        **{**SMALL, **sizes, "num_hidden_layers": max(1, round(size / LAYER_BYTES))},
    )
    save(folder, transformers.BertModel(config), tokenizer)


async def measure_loads(stack: Stack, rounds: int) -> dict[str, list[float]]:
    """Seconds of LoadModel through Envoy: the first time, and then with the files in the caches."""
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    async with open_aio_channel(stack.addresses["envoy"]) as channel:
        stub = model_management_pb2_grpc.ModelManagementServiceStub(channel)
        for number in range(1 + rounds):
            start = time.perf_counter()
            await stub.LoadModel(
                pb.LoadModelRequest(
                    model_id=ENCODER,
                    pipeline_type="feature-extraction",
                    options={"engine": "transformers"},
                )
            )
            seconds["warm" if number else "cold"].append(time.perf_counter() - start)
            await stub.UnloadModel(pb.UnloadModelRequest(model_id=ENCODER))
    return seconds


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both parts, in a stack whose provider has the two models."""
    with tempfile.TemporaryDirectory(prefix="bench-files-") as name:
        folder = Path(name)
        file = folder / "models" / "text" / FILE_MODEL / FILE_NAME
        file.parent.mkdir(parents=True)
        size = options.file_mb << 20
        file.write_bytes(random.Random(1).randbytes(1 << 20) * options.file_mb)
        (folder / "models" / "vision").mkdir()  # has no part in this
        make_encoder(folder / "models" / "text" / ENCODER, options.model_mb << 20)
        with stack_in(folder / "run", "--models", str(folder / "models")) as stack:
            stack.wait_serving((MODEL_MGMT, TEXT))
            report = asyncio.run(measure_streams(stack, size, options.rounds))
            report["load_seconds"] = asyncio.run(measure_loads(stack, options.loads))
    return report


def table(report: dict[str, Any]) -> str:
    """The figures as Markdown."""
    speeds = report["mb_per_second"]
    lines = [
        (
            f"A file of {report['file_mb']} MiB in chunks of {CHUNK_BYTES} bytes; medians of "
            f"{report['rounds']} rounds, and of {report['loads']} loads with a warm cache."
        ),
        "",
        "| GetModelFile | MB/s | of bare | CPU s/GB: client | server | Envoy |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm in ARMS:
        ratio = statistics.median(
            ours / bare for ours, bare in zip(speeds[arm], speeds["bare"], strict=True)
        )
        cpu = {
            name: statistics.median(each[name] for each in report["cpu_seconds_per_gb"][arm])
            for name in ("client", "bare", "model_mgmt_svc", "envoy")
        }
        server = cpu["bare" if arm == "bare" else "model_mgmt_svc"]
        proxy = f"{cpu['envoy']:.2f}" if arm == "Envoy" else ""
        lines.append(
            f"| {arm} | {statistics.median(speeds[arm]):.0f} | {ratio:.2f} | {cpu['client']:.2f} "
            f"| {server:.2f} | {proxy} |"
        )
    lines += ["", "| memory, MiB | before | at most |", "| --- | ---: | ---: |"]
    for name, (before, peak) in report["memory_mb"].items():
        lines.append(f"| {name} | {before:.0f} | {peak:.0f} |")
    lines += ["", f"| load of {report['model_mb']} MiB | s |", "| --- | ---: |"]
    for cache, seconds in report["load_seconds"].items():
        lines.append(f"| {cache} cache | {statistics.median(seconds):.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = parser_of(__doc__)
    parser.add_argument("--serve", nargs=2, metavar=("PORT", "BYTES"), help=argparse.SUPPRESS)
    parser.add_argument("--file-mb", type=int, default=256, help="MiB of the file that is streamed")
    parser.add_argument("--model-mb", type=int, default=1024, help="MiB of the model's weights")
    parser.add_argument("--rounds", type=int, help="of the streams")
    parser.add_argument("--loads", type=int, default=3, help="with a warm cache")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.short else 7)
    if options.serve:
        asyncio.run(serve_bare(*map(int, options.serve)))
        sys.exit()
    with quiet_machine(busy=options.busy) as machine:
        report = measure(options)
    for name in ("file_mb", "model_mb", "rounds", "loads"):
        report[name] = getattr(options, name)
    publish(options.out, "files", machine, report, table(report))


if __name__ == "__main__":
    main()
