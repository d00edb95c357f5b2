"""Many callers: token streams, idle connections, and more video streams than the machine can do.

`python -m tests.bench.bench_connections` starts a stack of its own and measures through Envoy:

* 1, 8, 64, 256 and 1,024 token streams at once: tokens a second, and the memory of a stream;
* more streams than there are places: how many are refused, with which reason, and how soon;
* idle connections beside 8 streams: what Envoy holds for each, and what the streams lose;
* 200 video streams where 20 may run: how many frames these get, and how soon the rest is refused.

Limits that would refuse streams before the one that is measured are raised; the table names them.
Results go to out/bench/connections.json and .md.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import grpc
from google.rpc import error_details_pb2, status_pb2

from ml import (
    mediapipe_pb2,
    mediapipe_pb2_grpc,
    model_management_pb2,
    model_management_pb2_grpc,
    transformers_pb2_grpc,
)
from ml import transformers_pb2 as pb
from shared.telemetry.process_metrics import private_bytes, process_tree
from tests.bench.machine import quiet_machine
from tests.bench.results import parser_of, publish
from tests.integration.vision.reference import clip_for
from tests.support.stack import CHAT, Stack, open_aio_channel, stack_in

STREAMS = (1, 8, 64, 256, 1024)
# Running and waiting generations that the stack has places for, and streams offered beyond them.
RUNNING, PLACES, OFFERED = 32, 1024, 1200
ANSWER_TOKENS = 32
# HTTP/2 streams of a connection, below Envoy's limit; calls that begin in a second, below its rate.
STREAMS_OF_CONNECTION, STARTS_A_SECOND = 128, 250
# Envoy takes 10,000 connections, of which an address may have 1,000.
IDLE, OF_ADDRESS = 9_900, 990
VIDEO_OFFERED, VIDEO_PLACES, VIDEO_FPS = 200, 20, 10
# The stack's settings.
SETTINGS = {
    "TEXT_MAX_RUNNING": str(RUNNING),
    "TEXT_MAX_WAITING": str(PLACES - RUNNING),
    "TEXT_MAX_CONCURRENT_CALLS": "4096",
    "TEXT_MAX_CALLS_PER_CALLER": "4096",
    "VISION_MAX_STREAMS": str(VIDEO_PLACES),
}
# A client's first bytes in HTTP/2, with empty settings.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
MIB = 1 << 20


@dataclass
class Level:
    """What a number of token streams came to.

    Attributes:
        tokens_a_second: of all together.
        held_bytes: private memory of the stack's processes meanwhile.
        refused: calls that ended otherwise than well, by status and reason.
        refused_seconds: how long each of these took.
    """

    streams: int
    tokens_a_second: float = 0.0
    held_bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    refused_seconds: list[float] = field(default_factory=list)


@dataclass
class Video:
    """Video streams: answered frames a second of those that ran, and refusals as in `Level`."""

    fps: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    refused_seconds: list[float] = field(default_factory=list)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The status, and the reason that programs get."""
    trailers = dict(error.trailing_metadata() or ())
    status, info = status_pb2.Status(), error_details_pb2.ErrorInfo()
    status.ParseFromString(trailers.get("grpc-status-details-bin", b""))  # type: ignore[arg-type]
    for detail in status.details:
        if detail.Unpack(info):
            return f"{error.code().name} {info.reason}"
    return f"{error.code().name}, {error.details()}"


class Channels:
    """Connections to Envoy, for some streams each."""

    def __init__(self, address: str, streams: int) -> None:
        count = math.ceil(streams / STREAMS_OF_CONNECTION)
        self._channels = [open_aio_channel(address) for _ in range(count)]

    def of(self, number: int) -> grpc.aio.Channel:
        """The one for a stream."""
        return self._channels[number % len(self._channels)]

    async def aclose(self) -> None:
        """Closes them."""
        await asyncio.gather(*(each.close() for each in self._channels))


def held(stack: Stack) -> int:
    """Private memory of the stack's processes, without those that only serve the benchmark."""
    pids = {each for pid in stack.pids.values() for each in process_tree(pid)}
    return sum(map(private_bytes, pids))


class TokenStreams:
    """Callers that ask, read their answer, and ask again."""

    def __init__(self, channels: Channels, streams: int, level: Level) -> None:
        self._channels = channels
        self._level = level
        self._tokens = 0
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(streams)]

    async def measure(self, seconds: float) -> None:
        """Lets all begin, and counts tokens for a time."""
        await asyncio.sleep(len(self._tasks) / STARTS_A_SECOND + 2)
        before, start = self._tokens, time.monotonic()
        await asyncio.sleep(seconds)
        self._level.tokens_a_second = (self._tokens - before) / (time.monotonic() - start)

    async def aclose(self) -> None:
        """Cancels all calls."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _call(self, number: int) -> None:
        await asyncio.sleep(number / STARTS_A_SECOND)
        stub = transformers_pb2_grpc.TransformersServiceStub(self._channels.of(number))
        again = 0
        while True:
            again += 1
            request = pb.TextRequest(
                model=CHAT,
                prompt=f"Story {again} of caller {number}:",
                max_length=ANSWER_TOKENS,
                temperature=0,
            )
            start = time.monotonic()
            try:
                async for response in stub.GenerateText(request):
                    self._tokens += not response.done
            except grpc.aio.AioRpcError as error:
                self._level.refused[reason_of(error)] += 1
                self._level.refused_seconds.append(time.monotonic() - start)
                return


async def token_streams(stack: Stack, streams: int, seconds: float) -> Level:
    """One level."""
    level = Level(streams)
    async with (
        aclosing(Channels(stack.addresses["envoy"], streams)) as channels,
        aclosing(TokenStreams(channels, streams, level)) as running,
    ):
        await running.measure(seconds)
        level.held_bytes = await asyncio.to_thread(held, stack)
    return level


async def idle_connections(stack: Stack, count: int, seconds: float) -> tuple[Level, float]:
    """8 token streams beside idle connections, and what Envoy holds for each of these, in bytes."""
    host, _, port = stack.addresses["envoy"].rpartition(":")
    envoy = stack.pids["envoy"]
    before = private_bytes(envoy)
    async with AsyncExitStack() as cleanup:
        for number in range(count):
            source = f"127.0.{1 + number // OF_ADDRESS}.1"
            reader, writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0))
            cleanup.callback(writer.close)
            writer.write(PREFACE)
            await reader.read(9)  # Envoy's settings: the connection is taken
        each = (private_bytes(envoy) - before) / count
        return await token_streams(stack, 8, seconds), each


async def video_streams(stack: Stack, seconds: float) -> Video:
    """More video streams than may run, all at once."""
    video = Video()
    frames = [bytes(each) for each in jpegs()]
    async with aclosing(Channels(stack.addresses["envoy"], VIDEO_OFFERED)) as channels:
        await asyncio.gather(
            *(
                one_video(channels.of(number), frames, seconds, video)
                for number in range(VIDEO_OFFERED)
            )
        )
    return video


def jpegs() -> Iterable[bytes]:
    """Frames of a person, as a camera sends them."""
    for image in clip_for("faces", 30):
        _, data = cv2.imencode(".jpg", image[:, :, ::-1])
        yield data.tobytes()


async def one_video(
    channel: grpc.aio.Channel, frames: Sequence[bytes], seconds: float, video: Video
) -> None:
    """Sends frames at a camera's pace, once the first is answered, and counts the answers."""
    sent: list[float] = []
    runs = asyncio.Event()
    start = time.monotonic()

    async def send(number: int) -> None:
        sent.append(time.monotonic())
        frame = frames[number % len(frames)]
        await call.write(
            mediapipe_pb2.VideoFrame(frame_data=frame, format="jpeg", frame_number=number)
        )

    async def camera() -> None:
        await send(0)
        await runs.wait()  # a frame after a refusal would hide its status
        began = time.monotonic()
        for number in range(1, round(seconds * VIDEO_FPS) + 1):
            await send(number)
            await asyncio.sleep(max(0, began + number / VIDEO_FPS - time.monotonic()))
        await call.done_writing()

    call = mediapipe_pb2_grpc.MediapipeServiceStub(channel).StreamFaceDetection()
    sending = asyncio.create_task(camera())
    begin = end = start
    answered = 0
    try:
        async for response in call:
            end = time.monotonic()
            if runs.is_set():
                video.latencies.append(end - sent[response.frame_number])
                answered += 1
            else:
                begin = end
                runs.set()
    except grpc.aio.AioRpcError as error:
        video.refused[reason_of(error)] += 1
        video.refused_seconds.append(time.monotonic() - start)
        return
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    video.fps.append(answered / max(end - begin, seconds))


def percentile(values: Sequence[float], share: float) -> float:
    """Of a list that may be empty."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else math.nan


def table(
    levels: Sequence[Level], over: Level, idle: tuple[int, Level, float], video: Video
) -> str:
    """Markdown."""
    best = max(level.tokens_a_second for level in levels)
    first = levels[0]
    rows = []
    for level in levels:
        more = level.streams - first.streams
        each = (level.held_bytes - first.held_bytes) / more / 1024 if more else math.nan
        rows.append(
            f"| {level.streams} | {level.tokens_a_second:.0f} | {level.tokens_a_second / best:.0%} "
            f"| {'' if math.isnan(each) else f'{each:.0f}'} | {told(level.refused) or 'none'} |"
        )
    count, beside, each = idle
    eight = next((level for level in levels if level.streams == 8), first)
    head = (
        f"SmolLM2-135M-Instruct, float32, answers of {ANSWER_TOKENS} tokens; {RUNNING} run, "
        f"{PLACES - RUNNING} wait (`TEXT_MAX_RUNNING`, `TEXT_MAX_WAITING`)."
    )
    refused = (
        f"Of {over.streams} streams {over.refused.total()} were refused: "
        f"{told(over.refused) or 'none'}, after {spread(over.refused_seconds)}."
    )
    with_idle = (
        f"Beside {count} idle connections, for each of which Envoy held {each / 1024:.1f} KiB, "
        f"8 streams got {beside.tokens_a_second:.0f} tokens/s "
        f"({beside.tokens_a_second / eight.tokens_a_second:.0%} of those without)."
    )
    ran = (
        f"Of {VIDEO_OFFERED} streams of face detection at {VIDEO_FPS} frames/s, {len(video.fps)} "
        f"ran (`VISION_MAX_STREAMS={VIDEO_PLACES}`) and got "
        f"{statistics.mean(video.fps or [0]):.1f} frames/s, the slowest "
        f"{min(video.fps, default=0):.1f}, answered in {spread(video.latencies)}; "
        f"{video.refused.total()} were refused ({told(video.refused) or 'none'}), "
        f"after {spread(video.refused_seconds)}."
    )
    columns = "| token streams | tokens/s | of the best | KiB a stream | refused |"
    lines = [head, "", columns, "|---:|---:|---:|---:|---|", *rows, ""]
    return "\n".join([*lines, refused, "", with_idle, "", ran])


def told(refused: Counter[str]) -> str:
    """Refusals in words."""
    return ", ".join(f"{count} {reason}" for reason, count in refused.most_common())


def spread(seconds: Sequence[float]) -> str:
    """Median and 95th percentile."""
    return f"{percentile(seconds, 0.5) * 1000:.0f} ms (p95 {percentile(seconds, 0.95) * 1000:.0f})"


async def measure(stack: Stack, seconds: float, idle: int) -> tuple[str, dict[str, Any]]:
    """The table and all figures."""
    async with stack.aio_channel() as channel:
        await model_management_pb2_grpc.ModelManagementServiceStub(channel).LoadModel(
            model_management_pb2.LoadModelRequest(model_id=CHAT, pipeline_type="text-generation")
        )
    await token_streams(stack, RUNNING, 1)  # takes what is taken once
    levels = [await token_streams(stack, streams, seconds) for streams in STREAMS]
    over = await token_streams(stack, OFFERED, seconds / 2)
    beside, each = await idle_connections(stack, idle, seconds)
    video = await video_streams(stack, seconds)
    report = {
        "levels": [asdict(level) for level in levels],
        "over": asdict(over),
        "idle": {"connections": idle, "bytes": each, "beside": asdict(beside)},
        "video": asdict(video),
    }
    return table(levels, over, (idle, beside, each), video), report


def main() -> None:
    """Entry point."""
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, help="of each level")
    parser.add_argument("--idle", type=int, default=IDLE, help="idle connections")
    options = parser.parse_args()
    seconds = options.seconds or (8 if options.short else 15)
    os.environ.update(SETTINGS)
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        with quiet_machine(busy=options.busy) as machine, stack_in(folder) as stack:
            stack.wait_serving()
            text, report = asyncio.run(measure(stack, seconds, options.idle))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    publish(options.out, "connections", machine, report, text)


if __name__ == "__main__":
    main()
