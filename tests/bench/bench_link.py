"""The link to a model's process beside gRPC on a Unix socket: CPU per token and per embedding call.

`python -m tests.bench.bench_link` prints a table and writes out/bench/link.json and .md. The model
is a stub that costs next to nothing: each of its steps gives every caller one token. CPU time is
what the processes used, user and system, so it says more than wall time on a machine that others
use too; it still grows when the cores are shared. Three arms take turns:

* `link` and `gRPC`: this process calls, a second one answers.
* `front`: gRPC to the forwarder of text_svc, which calls a third process over the link. The caller,
  which is this process, is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import psutil

from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc
from shared.errors import WorkerUnavailableError
from shared.rpc.server import create_server
from shared.settings import ServerSettings
from tests.bench.machine import quiet_machine
from tests.bench.results import parser_of, publish
from tests.support.stack import ROOT
from text_svc.link.call import Payload
from text_svc.link.client import Link
from text_svc.link.server import Handlers, listen
from text_svc.models.registry import Registry
from text_svc.service import TransformersForwarder

# Of the stub: how often it gives each caller a token, and the length of a vector.
STEP_SECONDS = 0.005
DIMENSIONS = 384
TEXT = "a sentence of about a dozen words, which the stub does not read"

# CPU milliseconds of the two ends, for one token or one call.
Ends = tuple[float, float]


class Stub:
    """A model's handlers without a model."""

    def __init__(self) -> None:
        self._step = asyncio.Event()
        self._stepping: asyncio.Task[None] | None = None
        self._vector = pb.GeneratedEmbedding(values=[0.5] * DIMENSIONS)

    def table(self) -> Handlers:
        return {"GenerateText": self.generate_text, "GenerateEmbeddings": self.embed}

    async def generate_text(self, request: pb.TextRequest) -> AsyncIterator[pb.TextResponse]:
        self._stepping = self._stepping or asyncio.create_task(self._steps())
        for number in range(1, request.max_length + 1):
            await self._step.wait()
            yield pb.TextResponse(text=" word", tokens_generated=number)
        usage = pb.GenerationUsage(prompt_tokens=1, generated_tokens=request.max_length)
        yield pb.TextResponse(done=True, finish_reason="length", usage=usage)

    async def embed(self, request: pb.GenerateEmbeddingsRequest) -> pb.GeneratedEmbeddingsResponse:
        vectors = [self._vector] * len(request.texts)
        return pb.GeneratedEmbeddingsResponse(embeddings=vectors, tokens=len(vectors))

    async def _steps(self) -> None:
        while True:
            await asyncio.sleep(STEP_SECONDS)
            self._step.set()
            self._step = asyncio.Event()


class StubServicer(transformers_pb2_grpc.TransformersServiceServicer):
    """The same as a gRPC servicer."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub

    def GenerateText(self, request: pb.TextRequest, _: Any) -> AsyncIterator[pb.TextResponse]:
        return self._stub.generate_text(request)

    async def GenerateEmbeddings(
        self, request: pb.GenerateEmbeddingsRequest, _: Any
    ) -> pb.GeneratedEmbeddingsResponse:
        return await self._stub.embed(request)


class OneModel:
    """In place of the registry and the model's process: lends one link for every model."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @asynccontextmanager
    async def use(self, model_id: str, rpc: str) -> AsyncIterator[OneModel]:
        yield self

    def stream(self, rpc: str, requests: Any, timeout: float | None) -> AsyncIterator[Payload]:
        return self._link.call(rpc, requests, metadata={"x-request-id": "1"}, timeout=timeout)

    async def unary(self, rpc: str, request: bytes, timeout: float | None) -> Payload:
        return await self._link.unary(rpc, request, metadata={"x-request-id": "1"})


async def serve(role: str, folder: Path) -> None:
    """One of the processes that answer, until it is killed."""
    if role == "worker":
        await listen(Stub().table(), folder / "link.sock", max_message_bytes=1 << 22)
    else:
        server = create_server(ServerSettings())
        if role == "gRPC":
            servicer = StubServicer(Stub())
            transformers_pb2_grpc.add_TransformersServiceServicer_to_server(servicer, server)
        else:
            model = OneModel(await connect(folder))
            TransformersForwarder(cast(Registry, model)).register(server)
        server.add_insecure_port(f"unix:{folder}/{role}.sock")
        await server.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


async def connect(folder: Path) -> Link:
    return await Link.connect(folder / "link.sock", lambda: WorkerUnavailableError("gone"))


class Child:
    """A process that answers, and its CPU time."""

    def __init__(self, role: str, folder: Path) -> None:
        command = (sys.executable, "-m", "tests.bench.bench_link", "--serve", role, str(folder))
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError(f"{role} did not start")
        self._figures = psutil.Process(self._process.pid)

    def cpu_seconds(self) -> float:
        times = self._figures.cpu_times()
        return times.user + times.system

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


# Makes one call to its end: a generation, or an embedding.
Calls = tuple[Callable[[pb.TextRequest], Awaitable[None]], Callable[[], Awaitable[None]]]


def over_link(link: Link) -> Calls:
    """Calls as text_svc made them before it forwarded bytes: it parses each response."""
    metadata = {"x-request-id": "1"}

    async def generate(request: pb.TextRequest) -> None:
        call = link.call("GenerateText", request.SerializeToString(), metadata=metadata)
        async with aclosing(call) as responses:
            async for response in responses:
                pb.TextResponse.FromString(response.data)

    async def embed() -> None:
        request = pb.GenerateEmbeddingsRequest(model="m", texts=[TEXT]).SerializeToString()
        call = link.call("GenerateEmbeddings", request, metadata=metadata)
        async with aclosing(call) as responses:
            pb.GeneratedEmbeddingsResponse.FromString((await anext(responses)).data)

    return generate, embed


def over_grpc(channel: grpc.aio.Channel) -> Calls:
    """The same calls by a generated stub."""
    stub = transformers_pb2_grpc.TransformersServiceStub(channel)

    async def generate(request: pb.TextRequest) -> None:
        async for _ in stub.GenerateText(request):
            pass

    async def embed() -> None:
        await stub.GenerateEmbeddings(pb.GenerateEmbeddingsRequest(model="m", texts=[TEXT]))

    return generate, embed


async def stretch(
    calls: Calls, ends: tuple[Callable[[], float], Callable[[], float]], options: Any
) -> dict[str, Ends]:
    """CPU of both ends for a token, and for an embedding call, with some callers at once."""
    generate, embed = calls

    async def many_embeddings() -> None:
        for _ in range(options.calls // options.callers):
            await embed()

    request = pb.TextRequest(model="m", prompt=TEXT, max_length=options.tokens)
    figures = {}
    for name, work, count in (
        ("token", lambda: generate(request), options.callers * options.tokens),
        ("embedding call", many_embeddings, options.calls),
    ):
        before = [end() for end in ends]
        await asyncio.gather(*(work() for _ in range(options.callers)))
        await asyncio.sleep(0.1)  # what the other ends still have to do
        spent = [1000 * (end() - was) / count for end, was in zip(ends, before, strict=True)]
        figures[name] = (spent[0], spent[1])
    return figures


async def measure(options: argparse.Namespace) -> dict[str, dict[str, list[Ends]]]:
    """The figures of all rounds, by arm and by unit of work."""
    with tempfile.TemporaryDirectory(prefix="bench-link-") as name:
        folder = Path(name)
        children = {role: Child(role, folder) for role in ("worker", "gRPC", "front")}
        cpu = {role: child.cpu_seconds for role, child in children.items()}
        link = await connect(folder)
        try:
            async with (
                grpc.aio.insecure_channel(f"unix:{folder}/gRPC.sock") as direct,
                grpc.aio.insecure_channel(f"unix:{folder}/front.sock") as front,
            ):
                arms = {
                    "link": (over_link(link), (time.process_time, cpu["worker"])),
                    "gRPC": (over_grpc(direct), (time.process_time, cpu["gRPC"])),
                    "front": (over_grpc(front), (cpu["front"], cpu["worker"])),
                }
                rounds: dict[str, dict[str, list[Ends]]] = {arm: {} for arm in arms}
                for number in range(-1, options.rounds):  # the first warms up
                    for arm, (calls, ends) in list(arms.items())[:: -1 if number % 2 else 1]:
                        for unit, figure in (await stretch(calls, ends, options)).items():
                            if number >= 0:
                                rounds[arm].setdefault(unit, []).append(figure)
        finally:
            link.close()
            for child in children.values():
                child.end()
    return rounds


def table(report: dict[str, Any]) -> str:
    """Markdown: medians by arm."""
    lines = [
        f"{report['callers']} callers, medians of {report['rounds']} rounds.",
        "",
        "| CPU ms | client end | server end | both |",
        "|---|---:|---:|---:|",
    ]
    for unit in ("token", "embedding call"):
        for arm, ends in (("link", ""), ("gRPC", ""), ("front", " (front, worker)")):
            client, server, both = report["cpu_ms"][unit][arm]
            lines.append(
                f"| a {unit}, {arm}{ends} | {client:.3f} | {server:.3f} | {both:.3f} |".replace(
                    "a embedding", "an embedding"
                )
            )
    return "\n".join(lines)


def medians(rounds: dict[str, dict[str, list[Ends]]]) -> dict[str, dict[str, list[float]]]:
    """Client end, server end and their sum, by unit and arm."""
    return {
        unit: {
            arm: [
                statistics.median(figure)
                for figure in zip(*((*ends, sum(ends)) for ends in by_unit[unit]), strict=True)
            ]
            for arm, by_unit in rounds.items()
        }
        for unit in ("token", "embedding call")
    }


def main() -> None:
    """Entry point."""
    parser = parser_of(__doc__)
    parser.add_argument("--serve", nargs=2, metavar=("ROLE", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=600, help="tokens of a generation")
    parser.add_argument("--calls", type=int, default=3200, help="embedding calls of a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve[0], Path(options.serve[1])))
    with quiet_machine(busy=options.busy) as machine:
        rounds = asyncio.run(measure(options))
    report = {
        "callers": options.callers,
        "rounds": options.rounds,
        "cpu_ms": medians(rounds),
        "all_rounds": rounds,
    }
    publish(options.out, "link", machine, report, table(report))


if __name__ == "__main__":
    main()
