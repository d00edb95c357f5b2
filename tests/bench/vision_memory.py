"""Memory of vision_svc after many streams: `python -m tests.bench.vision_memory --streams 3000`.

Opens that many short streams of each task, four at a time, on a service of its own for each task,
and compares what the process holds after all of them with what it held after the first 30: at most
150 MB more. It prints the first figure at once and the growth as it goes, and writes both to
out/bench/vision_memory.json and vision_memory.md, where tasks that are not run keep their lines.
All tasks take an hour or two; `--seconds` ends a task earlier, and its line says after how many
streams, as it does if the benchmark is stopped. A test runs a small one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import grpc

from ml import mediapipe_pb2 as pb
from ml import mediapipe_pb2_grpc as pb_grpc
from tests.support.processes import free_port, process, rss_bytes
from tests.support.stack import MODELS, VISION, is_healthy, open_channel, wait_for
from tools import vision_clips
from tools.models import REPOSITORY

OUT = REPOSITORY / "out" / "bench" / "vision_memory.json"
FIRST_STREAMS = 30
MAX_GROWTH_BYTES = 150_000_000
_AT_ONCE = 4
# A second frame makes a task track; more would only take time.
_FRAMES = 2
# Streams between two figures, which also are the steps in which a task is ended early.
_STEP = 200
# After the last stream: for its detector to be closed, and free memory to be returned.
_REST_SECONDS = 3.0


@dataclass(frozen=True)
class Held:
    """What a service held, in bytes: after the first streams of a task, and after all."""

    streams: int
    before: int
    after: int

    @property
    def growth(self) -> int:
        """What the later streams left behind."""
        return self.after - self.before


def stream_tasks() -> list[str]:
    """The RPCs that take frames of video."""
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    return [method.name for method in service.methods if method.client_streaming]


def requests(task: str) -> list[Any]:
    """A few pictures of a person, as JPEG, as an RPC takes them."""
    pictures = list(vision_clips.moving(vision_clips.astronaut(), _FRAMES))
    jpegs = [cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes() for picture in pictures]
    if task == "StreamTemplateMatching":
        corner = cv2.imencode(".png", pictures[0][:64, :64, ::-1])[1].tobytes()
        return [pb.TemplateMatchingRequest(frame_data=each, template_data=corner) for each in jpegs]
    frame = pb.MediaSequenceFrame if task == "ProcessMediaSequence" else pb.VideoFrame
    return [
        frame(frame_data=jpeg, format="jpeg", frame_number=number, timestamp_ms=40 * number)
        for number, jpeg in enumerate(jpegs)
    ]


def run_streams(channel: grpc.Channel, task: str, count: int, video: Sequence[Any]) -> None:
    """Runs streams of one task to their ends, some at once.

    Raises:
        grpc.RpcError: one of them failed.
    """
    call = getattr(pb_grpc.MediapipeServiceStub(channel), task)
    method = pb.DESCRIPTOR.services_by_name["MediapipeService"].methods_by_name[task]

    def stream(_: int) -> int:
        answer = call(iter(video))
        return sum(1 for _ in answer) if method.server_streaming else len(video)

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        answered = list(threads.map(stream, range(count)))
    assert answered == [len(video)] * count, (task, answered)


def settled_rss(pid: int) -> int:
    """What a process holds once it rests, in bytes."""
    time.sleep(_REST_SECONDS)
    return rss_bytes(pid)


def measure(
    channel: grpc.Channel,
    pid: int,
    task: str,
    streams: int,
    *,
    first: int = FIRST_STREAMS,
    seconds: float = float("inf"),
    say: Callable[[Held], None] = lambda _: None,
) -> Held:
    """Runs streams of a task until there were as many, or the time is over.

    Args:
        channel, pid: of the service.
        task: the RPC.
        streams: how many in all.
        first: after how many the first figure is taken.
        seconds: no more streams are begun after that long.
        say: gets what is held as it is measured, from the first streams on.

    Raises:
        grpc.RpcError: a stream failed.
    """
    video, end = requests(task), time.monotonic() + seconds
    run_streams(channel, task, first, video)
    before = settled_rss(pid)
    held = Held(first, before, before)
    say(held)
    while held.streams < streams and time.monotonic() < end:
        count = min(_STEP, streams - held.streams)
        run_streams(channel, task, count, video)
        held = Held(held.streams + count, before, settled_rss(pid))
        say(held)
    return held


def record(task: str, held: Held) -> None:
    """Adds a task's figures to those that were taken before, or replaces its own."""
    taken = json.loads(OUT.read_text()) if OUT.exists() else {}
    taken[task] = asdict(held)
    all_held = {each: Held(**taken[each]) for each in stream_tasks() if each in taken}
    part = OUT.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(taken, indent=1) + "\n")
    part.replace(OUT)
    OUT.with_suffix(".md").write_text(report(all_held))


def report(held: Mapping[str, Held]) -> str:
    """A table of what was held, in Markdown."""
    rows = [
        f"| {task} | {each.streams:,} | {each.before / 1e6:.0f} | {each.after / 1e6:.0f} |"
        f" {each.growth / 1e6:+.0f} |"
        for task, each in held.items()
    ]
    head = f"| RPC | streams | MB after {FIRST_STREAMS} | MB after all | growth |"
    return "\n".join((head, "|---|---:|---:|---:|---:|", *rows)) + "\n"


def measure_alone(task: str, streams: int, seconds: float) -> Held | None:
    """The same on a service of its own; None if the task has no model here, which may be optional.

    Raises:
        grpc.RpcError: a stream failed.
    """
    port = free_port()
    settings = {
        "VISION_PORT": str(port),
        "VISION_METRICS_PORT": "0",
        "VISION_MODEL_DIR": str(MODELS / "vision"),
        "VISION_LOG_LEVEL": "ERROR",
        "VISION_ADMISSION_SECONDS": "0",
        # The benchmark may run beside other work, at a low priority.
        "VISION_FIRST_MESSAGE_SECONDS": "25",
        "VISION_READER_SECONDS": "600",
    }

    def say(held: Held) -> None:
        figure = (
            f"{held.after / 1e6:.0f} MB"
            if held.streams <= FIRST_STREAMS
            else f"{held.growth / 1e6:+.0f} MB"
        )
        print(f"{task}: {figure} after {held.streams} streams", flush=True)
        record(task, held)

    with (
        OUT.with_suffix(".log").open("ab") as log,  # its libraries print lines for each stream
        process("-m", "vision_svc", env=settings, output=log) as service,
        open_channel(f"127.0.0.1:{port}") as channel,
    ):
        wait_for("vision_svc serving", lambda: is_healthy(channel, VISION))
        try:
            return measure(channel, service.pid, task, streams, seconds=seconds, say=say)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            print(f"{task}: {error.details()}", flush=True)
            return None


def main() -> int:
    """The command line; 1 if a task left too much behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=3000, help="of each task")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most for each task")
    parser.add_argument("--tasks", nargs="+", default=stream_tasks(), help="RPCs, by default all")
    options = parser.parse_args()
    too_much = []
    OUT.parent.mkdir(parents=True, exist_ok=True)
    for task in options.tasks:
        held = measure_alone(task, options.streams, options.seconds)
        if held and held.growth > MAX_GROWTH_BYTES:
            too_much.append(task)
    for task in too_much:
        print(f"{task}: more than {MAX_GROWTH_BYTES / 1e6:.0f} MB left behind")
    return int(bool(too_much))


if __name__ == "__main__":
    sys.exit(main())
