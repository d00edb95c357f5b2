"""How many replicas one model_mgmt_svc follows: its real reconcile loop over fake replicas.

`python -m tests.bench.bench_scale` prints a table and writes out/bench/scale.json and .md. The
replicas, in a process of their own, answer over gRPC and hold figures in place of weights; their
models load at once, so what is measured is the control plane alone. Some are replaced by empty ones
on other addresses, as pods are. CPU time is that of the loop's process, with its connections; it
says more than wall time on a machine that others use too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from model_mgmt_svc import replicas as replicas_module
from model_mgmt_svc.desired import DesiredModel, DesiredModels
from model_mgmt_svc.lifecycle import Lifecycle
from model_mgmt_svc.reconciler import Reconciler
from model_mgmt_svc.replicas import Replicas
from shared.model_ids import parse_model_id
from tests.bench.machine import quiet_machine
from tests.bench.results import parser_of, publish
from tests.support.stack import ROOT

ROUNDS = 5
INTERVAL = 2.0  # MODEL_MGMT_RECONCILE_SECONDS
MODELS = 50
# Replicas, and how many of them are replaced.
SIZES = ((10, 2), (100, 20), (500, 100))
LONGEST_SECONDS = 1200.0


@dataclass
class Fleet:
    """The fake replicas, whose addresses one host name has."""

    child: asyncio.subprocess.Process
    addresses: list[str]

    async def resolve(self, target: str) -> list[str]:
        return self.addresses

    async def ask(self, line: str) -> Any:
        assert self.child.stdin
        assert self.child.stdout
        self.child.stdin.write(f"{line}\n".encode())
        return json.loads(await self.child.stdout.readline())

    async def until_whole(self) -> None:
        """Returns when every replica has all models and is admitted."""
        count = len(self.addresses)
        async with asyncio.timeout(LONGEST_SECONDS):
            while await self.ask("count") != {"models": count * MODELS, "admitted": count}:
                await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def fleet(count: int) -> AsyncIterator[Fleet]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.scale_workers", str(count), str(MODELS)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    assert child.stdout
    try:
        workers = Fleet(child, json.loads(await child.stdout.readline()))
        with mock.patch.object(replicas_module, "_addresses", workers.resolve):
            yield workers
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def no_files(model_id: object) -> None:
    """In place of a look at the provider's files."""


async def measure(folder: Path, count: int, replaced: int) -> dict[str, float]:
    """One size, in seconds and MiB."""
    process = psutil.Process()
    before = process.memory_info().rss
    async with (
        fleet(count) as workers,
        Replicas({"text": "text-all:50062"}) as known,
        DesiredModels(folder / f"{count}.json") as desired,
        contextlib.aclosing(Lifecycle(known, desired, no_files)) as lifecycle,
    ):
        loop = Reconciler(
            known, desired, lifecycle, interval=INTERVAL, max_failures=5, clock=time.monotonic
        )
        for number in range(MODELS):
            model_id = parse_model_id(f"org/model-{number}")
            await desired.put(DesiredModel(model_id, "text-generation"))
        await loop.round()  # connects
        walls, cpus = [], []
        for _ in range(ROUNDS):
            start, used = time.monotonic(), time.process_time()
            await loop.round()
            walls.append(time.monotonic() - start)
            cpus.append(time.process_time() - used)
        rss = process.memory_info().rss
        workers.addresses = await workers.ask(f"replace {replaced}")
        start, used = time.monotonic(), time.process_time()
        running = asyncio.create_task(loop.run())
        try:
            await workers.until_whole()
        finally:
            running.cancel()
            await asyncio.wait([running])
        wall, cpu = time.monotonic() - start, time.process_time() - used
    return {
        "replicas": count,
        "round_seconds": statistics.median(walls),
        "round_cpu_seconds": statistics.median(cpus),
        "rss_mib": rss / (1 << 20),
        "rss_grown_mib": (rss - before) / (1 << 20),
        "replaced": replaced,
        "whole_seconds": wall,
        "whole_cpu_seconds": cpu,
    }


def table(rows: list[dict[str, float]]) -> str:
    """Markdown."""
    head = ("replicas", "CPU of a round, s", "wall, s", "rounds/s", "RSS, MiB", "replaced")
    head += ("whole again, s", "CPU, s")
    lines = [f"| {' | '.join(head)} |", "|" + " ---: |" * len(head)]
    lines += [
        f"| {row['replicas']} | {row['round_cpu_seconds']:.3f} | {row['round_seconds']:.3f} "
        f"| {1 / row['round_seconds']:.1f} | {row['rss_mib']:.0f} | {row['replaced']} "
        f"| {row['whole_seconds']:.1f} | {row['whole_cpu_seconds']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    options = parser_of(__doc__).parse_args()
    sizes = SIZES[:1] if options.short else SIZES
    with quiet_machine(busy=options.busy) as machine, tempfile.TemporaryDirectory() as folder:
        rows = [asyncio.run(measure(Path(folder), *size)) for size in sizes]
    publish(options.out, "scale", machine, {"models": MODELS, "sizes": rows}, table(rows))


if __name__ == "__main__":
    main()
