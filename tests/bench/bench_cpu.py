"""CPU of a token and of an embedding call, by process: Envoy, text_svc, and the model's processes.

`python -m tests.bench.bench_cpu` prints a table and writes out/bench/cpu.json and .md. Callers keep
one stack busy, as in the benchmarks of text and of embeddings; CPU time is what each process used,
user and system, from /proc. It bears other work on the machine far better than wall time, though it
grows when cores are shared. What the services use without calls is told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ml import model_management_pb2 as management
from ml import model_management_pb2_grpc
from tests.bench.bench_embeddings import sentences
from tests.bench.machine import quiet_machine
from tests.bench.results import parser_of, publish
from tests.bench.rust_client import RustClient, add_option
from tests.bench.text_types import questions
from tests.bench.wire_calls import Caller
from tests.support.stack import CHAT, EMBEDDER, Stack, stack_in

# What the commands of processes hold, by hop; the first that fits counts.
HOPS = {
    "OpenVINO's steps": "worker.engines.openvino_process",
    "chat template": "chat_template_process",
    "worker": "text_svc.worker",
    "text_svc": "-m text_svc",
    "Envoy": "envoy",
    "others": "",
}
OUTSIDE = ("Envoy", "text_svc")
IDLE_SECONDS = 5.0


def cpu(stack: Stack) -> Counter[str]:
    """CPU seconds that the stack's processes have used so far, by hop."""
    spent: Counter[str] = Counter()
    for process, command in stack.commands():
        hop = next(name for name, part in HOPS.items() if part in command)
        with suppress(psutil.Error):  # it has just ended
            times = process.cpu_times()
            spent[hop] += times.user + times.system
    return spent


async def measured(stack: Stack, work: Callable[[], Awaitable[int]]) -> dict[str, float]:
    """CPU milliseconds by hop of each unit of work, of which `work` returns the number."""
    before = await asyncio.to_thread(cpu, stack)
    count = await work()
    await asyncio.sleep(0.2)  # what is still written to logs
    after = await asyncio.to_thread(cpu, stack)
    return {hop: 1000 * (after[hop] - before[hop]) / count for hop in HOPS}


async def load(stack: Stack) -> None:
    async with stack.aio_channel() as channel:
        stub = model_management_pb2_grpc.ModelManagementServiceStub(channel)
        for model, pipeline in ((CHAT, "text-generation"), (EMBEDDER, "feature-extraction")):
            await stub.LoadModel(
                management.LoadModelRequest(model_id=model, pipeline_type=pipeline)
            )


async def measure(options: argparse.Namespace, rust: RustClient | None) -> dict[str, Any]:
    """Medians of the rounds, by row and hop."""
    texts = sentences(512)
    rounds: dict[str, list[dict[str, float]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="bench-cpu-") as folder,
        stack_in(Path(folder)) as stack,
    ):
        await asyncio.to_thread(stack.wait_serving)
        await load(stack)
        caller = Caller(stack.addresses["envoy"], rust)

        async def idle() -> int:
            began = time.monotonic()
            await asyncio.sleep(IDLE_SECONDS)
            return round(time.monotonic() - began)

        number = 0
        for round_ in range(-1, options.rounds):  # the first warms up
            found = {"a second without calls": await measured(stack, idle)}
            for callers in options.text_callers:
                number += 1
                asked = questions(callers, number)
                found[f"a token, {callers} callers"] = await measured(
                    stack, lambda asked=asked: caller.chat(CHAT, asked, options.tokens)
                )
            for callers in options.embedding_callers:
                found[f"an embedding call, {callers} callers"] = await measured(
                    stack,
                    lambda callers=callers: caller.embed(EMBEDDER, texts, callers, options.seconds),
                )
            if round_ >= 0:
                for name, figures in found.items():
                    rounds.setdefault(name, []).append(figures)
    return {
        name: {hop: statistics.median(each[hop] for each in figures) for hop in HOPS}
        | {"outside": statistics.median(sum(map(each.__getitem__, OUTSIDE)) for each in figures)}
        for name, figures in rounds.items()
    }


def table(report: dict[str, Any]) -> str:
    """Markdown: a row for each unit of work."""
    lines = [
        f"Medians of {report['rounds']} rounds.",
        "",
        f"| CPU ms of | {' | '.join(HOPS)} | {' and '.join(OUTSIDE)} |",
        "|---" * (len(HOPS) + 2) + "|",
    ]
    for name, figures in report["cpu_ms"].items():
        cells = " | ".join(f"{spent:.3f}" for spent in figures.values())
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = parser_of(__doc__)
    parser.add_argument("--text-callers", type=int, nargs="*", default=[1, 8, 16])
    parser.add_argument("--embedding-callers", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of an answer")
    parser.add_argument("--seconds", type=float, help="of embedding calls")
    parser.add_argument("--rounds", type=int, default=3)
    add_option(parser)
    options = parser.parse_args()
    options.seconds = options.seconds or (2.0 if options.short else 4.0)
    rust = RustClient.chosen(options.client)
    with quiet_machine(busy=options.busy) as machine:
        figures = asyncio.run(measure(options, rust))
    report = {"rounds": options.rounds, "cpu_ms": figures}
    publish(options.out, "cpu", machine, report, table(report))


if __name__ == "__main__":
    main()
