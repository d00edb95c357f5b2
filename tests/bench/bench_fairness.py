"""One caller with a request now and then, beside another caller with 8, and with 500 at once.

`python -m tests.bench.bench_fairness` starts a stack of its own with a key for each of the callers.
One of them keeps 8 or 500 calls open, whose answers are read and asked for again; meanwhile the
other one asks for a text, and for the vector of a text. The rounds of 8 and of 500 take turns, so
that both see the same machine. The ratio of the medians is what is promised: at most 2.

Results go to out/bench/fairness.json and .md.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import random
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

from ml import model_management_pb2, model_management_pb2_grpc, transformers_pb2_grpc
from ml import transformers_pb2 as pb
from tests.bench.machine import quiet_machine
from tests.bench.results import parser_of, publish
from tests.support.stack import CHAT, EMBEDDER, Stack, open_aio_channel, stack_in

KEYS = {name: f"key-of-{name}-0123456789abcdef" for name in ("many", "one")}
FEW, MANY = 8, 500
ANSWER_TOKENS = 64
# Streams of a connection, below Envoy's limit; calls that begin in a second, below its rate.
STREAMS_OF_CONNECTION, STARTS_A_SECOND = 250, 250
SENTENCE = "Number {}: a sentence of about a dozen words, which is what callers often send."

Stub = transformers_pb2_grpc.TransformersServiceStub
Ask = Callable[[Stub, str, int], Awaitable[None]]


@dataclass
class Seen:
    """Seconds that one caller waited, beside this many calls of the other, and their errors."""

    calls: int
    seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def median(self) -> float:
        """Of the seconds."""
        return statistics.median(self.seconds)

    def p95(self) -> float:
        """Of the seconds."""
        return sorted(self.seconds)[int(len(self.seconds) * 0.95)]


def metadata(caller: str) -> tuple[tuple[str, str], ...]:
    """Of a caller's calls."""
    return (("authorization", f"Bearer {KEYS[caller]}"),)


async def text(stub: Stub, caller: str, number: int) -> None:
    """A text of the many, or of the one up to its first token, after which it leaves."""
    request = pb.TextRequest(
        model=CHAT,
        prompt=SENTENCE.format(number),
        max_length=ANSWER_TOKENS,
        temperature=0,
    )
    call = stub.GenerateText(request, metadata=metadata(caller))
    async for _ in call:
        if caller == "one":
            call.cancel()
            return


async def vector(stub: Stub, caller: str, number: int) -> None:
    """The vector of a text."""
    request = pb.GenerateEmbeddingsRequest(model=EMBEDDER, texts=[SENTENCE.format(number)])
    await stub.GenerateEmbeddings(request, metadata=metadata(caller))


WORK: dict[str, Ask] = {"first token of a text": text, "vector of a text": vector}


async def _keep_open(address: str, name: str, calls: int, pipe: Connection) -> None:
    """Keeps a number of calls open until the other end of the pipe says something."""
    ask, numbers, errors = WORK[name], itertools.count(), Counter[str]()
    channels = [open_aio_channel(address) for _ in range(-(-calls // STREAMS_OF_CONNECTION))]

    async def call(position: int) -> None:
        await asyncio.sleep(position / STARTS_A_SECOND)
        stub = Stub(channels[position % len(channels)])
        while True:
            try:
                await ask(stub, "many", next(numbers))
            except grpc.aio.AioRpcError as error:
                errors[f"{error.code().name} {error.details()}"] += 1
                await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(call(position)) for position in range(calls)]
    await asyncio.sleep(calls / STARTS_A_SECOND + 1)
    pipe.send("open")
    await asyncio.to_thread(pipe.recv)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for channel in channels:
        await channel.close()
    pipe.send(errors)


def _others(address: str, name: str, calls: int, pipe: Connection) -> None:
    asyncio.run(_keep_open(address, name, calls, pipe))


@contextmanager
def others(address: str, name: str, seen: Seen) -> Iterator[None]:
    """The calls of the caller with many, in a process of their own, all of which have begun."""
    context = multiprocessing.get_context("spawn")
    pipe, far = context.Pipe()
    process = context.Process(target=_others, args=(address, name, seen.calls, far), daemon=True)
    process.start()
    pipe.recv()
    try:
        yield
    finally:
        pipe.send("close")
        seen.errors.update(pipe.recv())
        process.join()


async def sample(address: str, name: str, seen: Seen, count: int) -> None:
    """Has one caller ask `count` times beside the other's calls."""
    ask = WORK[name]
    with others(address, name, seen):
        async with open_aio_channel(address) as channel:
            stub = Stub(channel)
            await ask(stub, "one", -1)  # its connection
            for number in range(count):
                await asyncio.sleep(random.uniform(0.05, 0.2))  # at any moment of a step
                start = time.perf_counter()
                await ask(stub, "one", 1_000_000 + number)
                seen.seconds.append(time.perf_counter() - start)


async def measure(stack: Stack, rounds: int, count: int) -> dict[str, tuple[Seen, Seen]]:
    """What was seen of each kind of work, beside few and beside many."""
    address = stack.addresses["envoy"]
    async with stack.aio_channel() as channel:
        models = model_management_pb2_grpc.ModelManagementServiceStub(channel)
        for model_id in (CHAT, EMBEDDER):
            load = model_management_pb2.LoadModelRequest(model_id=model_id)
            await models.LoadModel(load, metadata=metadata("one"), timeout=900)
    found = {}
    for name in WORK:
        few, many = Seen(FEW), Seen(MANY)
        await sample(address, name, Seen(FEW), 2)  # takes what is taken once
        for number in range(rounds):
            for seen in (few, many)[:: -1 if number % 2 else 1]:
                await sample(address, name, seen, count)
        found[name] = few, many
    return found


def table(found: dict[str, tuple[Seen, Seen]]) -> str:
    """Markdown."""
    lines = [
        f"| p50 / p95 of one caller, ms | beside {FEW} calls of another | beside {MANY} | ratio |",
        "|---|---:|---:|---:|",
    ]
    for name, (few, many) in found.items():
        cells = [f"{1000 * seen.median():.0f} / {1000 * seen.p95():.0f}" for seen in (few, many)]
        lines.append(f"| {name} | {' | '.join(cells)} | {many.median() / few.median():.2f} |")
    errors: Counter[str] = Counter()
    for pair in found.values():
        errors.update(pair[0].errors + pair[1].errors)
    if errors:
        told = ", ".join(f"{count} {reason}" for reason, count in errors.most_common(3))
        lines += ["", f"Calls of the other one that ended with an error: {told}."]
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each number of calls")
    parser.add_argument("--count", type=int, help="times that the one caller asks in a round")
    options = parser.parse_args()
    count = options.count or (10 if options.short else 30)
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    callers = folder / "callers"
    callers.mkdir()
    keys = "".join(f"{name} {key}\n" for name, key in KEYS.items())
    (callers / "api_keys.txt").write_text(keys)
    try:
        with (
            quiet_machine(busy=options.busy) as machine,
            stack_in(folder / "run", "--callers", str(callers)) as stack,
        ):
            stack.wait_serving(["ml.TransformersService", "ml.ModelManagementService"])
            found = asyncio.run(measure(stack, options.rounds, count))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report: dict[str, Any] = {name: [asdict(seen) for seen in pair] for name, pair in found.items()}
    publish(options.out, "fairness", machine, report, table(found))


if __name__ == "__main__":
    main()
