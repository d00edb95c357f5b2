"""`ml bench`: how much a running stack does, and how long a caller waits.

For a person who wants figures of this machine and this model. Those of docs/benchmarks.md come from
`make bench`, with a load generator in Rust that takes less of the machine.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import output
from cli.failures import CliError
from cli.inputs import assignments
from cli.names import chosen_model
from cli.options import INT32, Model
from cli.registry import command
from cli.requests import stream as stream_of
from cli.session import Session
from cli.tasks import TASKS

if TYPE_CHECKING:
    from cli.load import Counts

_SENTENCE = "The quick brown fox jumps over the lazy dog, and nobody minds."
_PROMPT = "Write a long story about a fox and a dog."
_IN_FLIGHT = 4
_VIDEO_FRAMES = 60

Callers = Annotated[int, typer.Option("--callers", "-c", min=1, max=1000, help="At once.")]
Seconds = Annotated[float, typer.Option("--seconds", "-s", min=0.1, help="How long.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    bench = typer.Typer(help="Measure what a running stack does: tokens, texts or frames a second.")
    command(bench, "chat")(chat)
    command(bench, "embed")(embed)
    command(bench, "stream")(stream)
    app.add_typer(bench, name="bench")


def chat(
    session: Session,
    model: Model = "",
    callers: Callers = 4,
    seconds: Seconds = 10,
    max_tokens: Annotated[int, typer.Option(min=1, max=INT32, help="Of each answer.")] = 64,
    prompt: Annotated[str, typer.Option(help="What each caller asks.")] = _PROMPT,
) -> None:
    """Measure chats: tokens a second, and the time to the first token."""
    from ml import transformers_pb2 as pb
    from ml import transformers_pb2_grpc

    with session.channel() as channel:
        name = chosen_model(session, channel, model, "ChatCompletion")
    request = pb.ChatRequest(
        model=name,
        messages=[pb.ChatMessage(role="user", content=prompt)],
        temperature=0,
        max_tokens=max_tokens,
        ignore_eos=True,
    )

    async def measure() -> tuple[Counts, float]:
        from cli import load

        async with session.aio_channel() as channel:
            stub = transformers_pb2_grpc.TransformersServiceStub(channel)

            async def one(counts: Counts, end: float) -> None:
                began = time.perf_counter()
                answered = False
                call = stub.ChatCompletion(request, **session.call)
                async for message in call:
                    if not answered:
                        answered = True
                        counts.first.append(time.perf_counter() - began)
                    if message.done:
                        counts.units += message.usage.generated_tokens
                counts.calls += 1
                counts.waits.append(time.perf_counter() - began)

            return await load.run(one, callers, seconds)

    _report(session, "tokens", callers, *_measured(measure()), first="first token")


def embed(
    session: Session,
    model: Model = "",
    callers: Callers = 4,
    seconds: Seconds = 10,
    texts: Annotated[int, typer.Option(min=1, max=100_000, help="Of each call.")] = 1,
    text: Annotated[str, typer.Option(help="What is embedded.")] = _SENTENCE,
) -> None:
    """Measure embeddings: texts a second, and the time of a call."""
    from ml import transformers_pb2 as pb
    from ml import transformers_pb2_grpc

    with session.channel() as channel:
        name = chosen_model(session, channel, model, "GenerateEmbeddings")
    request = pb.GenerateEmbeddingsRequest(texts=[text] * texts, model=name)

    async def measure() -> tuple[Counts, float]:
        from cli import load

        async with session.aio_channel() as channel:
            stub = transformers_pb2_grpc.TransformersServiceStub(channel)

            async def one(counts: Counts, end: float) -> None:
                began = time.perf_counter()
                answer = await stub.GenerateEmbeddings(request, **session.call)
                counts.units += len(answer.embeddings)
                counts.calls += 1
                counts.waits.append(time.perf_counter() - began)

            return await load.run(one, callers, seconds)

    _report(session, "texts", callers, *_measured(measure()))


def stream(
    session: Session,
    task: Annotated[str, typer.Argument(metavar="TASK", help=", ".join(TASKS) + ".")],
    video: Annotated[str, typer.Argument(help="A video, of which the first frames are sent.")],
    callers: Callers = 1,
    seconds: Seconds = 10,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-O", metavar="NAME=VALUE", help="Of the task; repeatable."),
    ] = None,
) -> None:
    """Measure streams of a vision task: frames a second, and the time of a frame."""
    from ml import mediapipe_pb2 as pb
    from ml import mediapipe_pb2_grpc

    if task not in TASKS or task == "templates":
        names = ", ".join(name for name in TASKS if name != "templates")
        raise CliError(f"task {task!r} must be one of {names}")
    pictures, options = _pictures(video), assignments(option)
    with session.channel() as channel:
        # What is wrong shows at this frame: streams of asyncio may lose a status for INTERNAL.
        rpc = getattr(mediapipe_pb2_grpc.MediapipeServiceStub(channel), TASKS[task].stream)
        frame = pb.VideoFrame(frame_data=pictures[0], format="jpeg", metadata=options)
        with stream_of(rpc, iter((frame,)), session.call) as answers:
            list(answers)

    async def measure() -> tuple[Counts, float]:
        import asyncio

        from cli import load

        async with session.aio_channel() as channel:
            rpc = getattr(mediapipe_pb2_grpc.MediapipeServiceStub(channel), TASKS[task].stream)

            async def one(counts: Counts, end: float) -> None:
                sent: dict[int, float] = {}
                places = asyncio.Semaphore(_IN_FLIGHT)

                async def frames() -> AsyncIterator[Any]:
                    number = 0
                    while time.perf_counter() < end:
                        await places.acquire()
                        sent[number] = time.perf_counter()
                        yield pb.VideoFrame(
                            frame_data=pictures[number % len(pictures)],
                            format="jpeg",
                            timestamp_ms=number * 33,
                            frame_number=number,
                            metadata={} if number else options,
                        )
                        number += 1

                async for answer in rpc(frames(), **session.call):
                    waited = time.perf_counter() - sent.pop(answer.frame_number)
                    places.release()
                    (counts.waits if answer.frame_number else counts.first).append(waited)
                    counts.units += 1
                counts.calls += 1

            return await load.run(one, callers, seconds)

    _report(session, "frames", callers, *_measured(measure()), first="first frame", each="frame")


def _pictures(video: str) -> list[bytes]:
    from cli import clips

    with clips.Video(video) as source:
        frames = zip(range(_VIDEO_FRAMES), source, strict=False)
        return [clips.jpeg(frame.image) for _, frame in frames]


def _measured(measuring: Any) -> tuple[Counts, float]:
    import asyncio  # slow to import

    measured: tuple[Counts, float] = asyncio.run(measuring)
    return measured


def _report(
    session: Session,
    unit: str,
    callers: int,
    counts: Counts,
    seconds: float,
    *,
    first: str = "",
    each: str = "call",
) -> None:
    from cli.load import percentile

    times = {first: counts.first, each: counts.waits}
    figures: dict[str, Any] = {
        "callers": callers,
        "seconds": round(seconds, 3),
        "calls": counts.calls,
        unit: counts.units,
        f"{unit}_per_second": round(counts.units / seconds, 2),
    }
    for name, waits in times.items():
        for percent in (50, 95) if name else ():
            key = f"{name.replace(' ', '_')}_p{percent}_ms"
            figures[key] = round(percentile(waits, percent / 100) * 1000, 2)
    if session.json:
        output.json_line(figures)
        return
    rows = [
        [f"{unit} a second", f"{counts.units / seconds:.1f}"],
        [f"{unit}, calls", f"{counts.units}, {counts.calls}"],
    ]
    for name, waits in times.items():
        if name:
            p50, p95 = (percentile(waits, share) * 1000 for share in (0.5, 0.95))
            rows.append([f"{name}, p50 and p95", f"{p50:.1f} ms, {p95:.1f} ms"])
    plural = "caller" if callers == 1 else "callers"
    output.table((f"{callers} {plural}, {seconds:.1f} s", ""), rows)
