"""Loads for calls: callers in turns over three models of which memory holds two.

`python -m tests.bench.bench_autoload` starts a stack of its own for each order, with three copies
of a small embedding model, and prints loads a minute and how long calls take:

* `grouped`: as it is by default; a model stays for AUTO_LOAD_WAIT_SECONDS while it is called.
* `first come`: AUTO_LOAD_WAIT_SECONDS=0; the order of the calls.

Each caller calls one of the models all the time. `--seconds 600 --order grouped` is the long run:
it fails if a call ends with an error other than its deadline, or a model is loaded twice within the
longest wait. Results go to out/bench/autoload.json and .md.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from ml import model_management_pb2, model_management_pb2_grpc, transformers_pb2_grpc
from ml import transformers_pb2 as pb
from tests.support.stack import EMBEDDER, MODELS, ROOT, stack_in
from text_svc.models.loader import PROCESS_BYTES

OUT = ROOT / "out" / "bench"
MIB = 1 << 20
IDS = ("bench/one", "bench/two", "bench/three")
# The longest wait of each order.
ORDERS = {"grouped": 30.0, "first come": 0.0}
DEADLINE_SECONDS = 300.0
# Between two calls of a caller.
GAP_SECONDS = 0.02
TEXTS = ["one sentence of about a dozen words, which is what callers often send"] * 4


@dataclass
class Result:
    """What was seen with one order; times in seconds.

    Attributes:
        took: of each call.
        errors: calls by their status, deadlines among them.
        loaded_at: when each model was READY, in Unix seconds.
    """

    seconds: float = 0.0
    took: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    loaded_at: dict[str, set[int]] = field(default_factory=lambda: {each: set() for each in IDS})

    @property
    def loads(self) -> int:
        return sum(map(len, self.loaded_at.values()))

    def shortest_gap(self) -> float:
        """The shortest time between two loads of one model."""
        gaps = [
            after - before
            for times in self.loaded_at.values()
            for before, after in itertools.pairwise(sorted(times))
        ]
        return min(gaps, default=float("inf"))

    def faults(self) -> dict[str, int]:
        """The errors that are no deadline."""
        deadline = grpc.StatusCode.DEADLINE_EXCEEDED.name
        return {code: count for code, count in self.errors.items() if code != deadline}

    def figures(self) -> dict[str, float]:
        """The line of the table."""
        cuts = statistics.quantiles(self.took, n=100) if len(self.took) > 1 else [0.0] * 99
        return {
            "calls": len(self.took),
            "loads a minute": round(self.loads * 60 / self.seconds, 2),
            "p50 s": round(cuts[49], 3),
            "p95 s": round(cuts[94], 3),
            "p99 s": round(cuts[98], 3),
            "longest s": round(max(self.took, default=0.0), 1),
            "shortest s between two loads of a model": self.shortest_gap(),
            "errors": sum(self.faults().values()),
            "deadlines": self.errors.total() - sum(self.faults().values()),
        }


def copies(folder: Path) -> None:
    """The model under three ids, as a file provider serves it."""
    for model_id in IDS:
        shutil.copytree(MODELS / "text" / EMBEDDER, folder / "text" / model_id, copy_function=_link)
    (folder / "vision").symlink_to(MODELS / "vision")


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def budget_mb() -> int:
    """MiB for two of the models and a part of the third."""
    weights = (MODELS / "text" / EMBEDDER / "model.safetensors").stat().st_size
    return int(2.6 * (weights + PROCESS_BYTES)) // MIB


async def caller(
    stub: transformers_pb2_grpc.TransformersServiceStub, model: str, result: Result, until: float
) -> None:
    """Calls one model until the time is over."""
    request = pb.GenerateEmbeddingsRequest(model=model, texts=TEXTS)
    while time.monotonic() < until:
        begun = time.monotonic()
        try:
            await stub.GenerateEmbeddings(request, timeout=DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            result.errors[error.code().name] += 1
            print(f"  {model}: {error.code().name} {error.details()}", file=sys.stderr)
            await asyncio.sleep(1)
        else:
            result.took.append(time.monotonic() - begun)
        await asyncio.sleep(GAP_SECONDS)


async def watch(channel: grpc.aio.Channel, result: Result) -> None:
    """Notes when each model is READY."""
    stub = model_management_pb2_grpc.ModelManagementServiceStub(channel)
    async for change in stub.WatchModels(model_management_pb2.WatchModelsRequest()):
        for model in change.models:
            if model.loaded_at and model.model_id in result.loaded_at:
                result.loaded_at[model.model_id].add(model.loaded_at)


async def measure(channel: grpc.aio.Channel, callers: int, seconds: float) -> Result:
    """The callers at work, after each model was loaded once, so that its files are there."""
    stub = transformers_pb2_grpc.TransformersServiceStub(channel)
    for model in IDS:
        await stub.GenerateEmbeddings(pb.GenerateEmbeddingsRequest(model=model, texts=TEXTS))
    result = Result()
    watching = asyncio.create_task(watch(channel, result))
    begun = time.monotonic()
    models = itertools.islice(itertools.cycle(IDS), callers)
    until = begun + seconds
    await asyncio.gather(*(caller(stub, model, result, until) for model in models))
    result.seconds = time.monotonic() - begun
    watching.cancel()
    await asyncio.wait({watching})
    return result


async def run_order(order: str, folder: Path, callers: int, seconds: float) -> Result:
    os.environ |= {
        "AUTO_LOAD": "bench/*",
        "AUTO_LOAD_WAIT_SECONDS": str(ORDERS[order]),
        "TEXT_MEMORY_BUDGET_MB": str(budget_mb()),
    }
    run = folder / order.replace(" ", "-")
    with stack_in(run, "--models", str(folder / "models")) as stack:
        stack.wait_serving(["ml.TransformersService", "ml.ModelManagementService"])
        async with stack.aio_channel() as channel:
            return await measure(channel, callers, seconds)


def table(report: Mapping[str, Any]) -> str:
    """The figures as a table of docs/benchmarks.md."""
    heads = [*next(iter(report["orders"].values()))]
    lines = [
        f"{report['callers']} callers, {report['seconds']:g} s of each order.",
        "",
        f"| order | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(heads)}",
        *(
            f"| {order} | {' | '.join(f'{figures[head]:g}' for head in heads)} |"
            for order, figures in report["orders"].items()
        ),
    ]
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench_autoload", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=180.0, help="of each order")
    parser.add_argument("--callers", type=int, default=6)
    parser.add_argument("--order", choices=ORDERS, action="append", help="default: both")
    return parser.parse_args()


def main() -> int:
    """Prints the table, and writes it; 1 if the grouped order has not kept its promises."""
    arguments = parse()
    results = {}
    with tempfile.TemporaryDirectory(prefix="autoload-", dir=ROOT / "run") as name:
        folder = Path(name)
        copies(folder / "models")
        for order in arguments.order or ORDERS:
            work = run_order(order, folder, arguments.callers, arguments.seconds)
            results[order] = asyncio.run(work)
            print(f"{order:12}", results[order].figures(), flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    report = {
        "seconds": arguments.seconds,
        "callers": arguments.callers,
        "orders": {order: result.figures() for order, result in results.items()},
    }
    (OUT / "autoload.json").write_text(json.dumps(report, indent=2))
    (OUT / "autoload.md").write_text(table(report))
    faults = []
    for order, result in results.items():
        if result.faults():
            faults.append(f"{order}: calls ended with {result.faults()}")
    if (grouped := results.get("grouped")) and grouped.shortest_gap() < ORDERS["grouped"]:
        faults.append(f"grouped: a model was loaded again after {grouped.shortest_gap():.0f} s")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
