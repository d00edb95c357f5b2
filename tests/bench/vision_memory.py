"""Memory of vision_svc after many streams: `python -m tests.bench.vision_memory --streams 3000`.

Opens that many short streams of each task, four at a time, on a service of its own for each task,
and compares what the process holds after all of them with what it held after the first 30: at most
150 MB more. It prints the first figure at once and the growth as it goes, and writes
out/bench/vision_memory.json after each task. All tasks take hours; `--seconds` ends a task earlier,
and its line says after how many streams. A test runs a small one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
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
    say: Callable[[str], None] = lambda _: None,
) -> Held:
    """Runs streams of a task until there were as many, or the time is over.

    Args:
        channel, pid: of the service.
        task: the RPC.
        streams: how many in all.
        first: after how many the first figure is taken.
        seconds: no more streams are begun after that long.
        say: gets each figure as it is taken, in words.

    Raises:
        grpc.RpcError: a stream failed.
    """
    video, end = requests(task), time.monotonic() + seconds
    run_streams(channel, task, first, video)
    before = after = settled_rss(pid)
    say(f"{before / 1e6:.0f} MB after {first} streams")
    done = first
    while done < streams and time.monotonic() < end:
        count = min(_STEP, streams - done)
        run_streams(channel, task, count, video)
        done += count
        after = settled_rss(pid)
        say(f"{(after - before) / 1e6:+.0f} MB after {done}")
    return Held(done, before, after)


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
    }

    def say(words: str) -> None:
        print(f"{task}: {words}", flush=True)

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
            say(str(error.details()))
            return None


def main() -> int:
    """The command line; 1 if a task left too much behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=3000, help="of each task")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most for each task")
    parser.add_argument("--tasks", nargs="+", default=stream_tasks(), help="RPCs, by default all")
    options = parser.parse_args()
    results: dict[str, dict[str, int]] = {}
    too_much = []
    OUT.parent.mkdir(parents=True, exist_ok=True)
    for task in options.tasks:
        if held := measure_alone(task, options.streams, options.seconds):
            results[task] = asdict(held)
            OUT.write_text(json.dumps(results, indent=1) + "\n")
            if held.growth > MAX_GROWTH_BYTES:
                too_much.append(task)
    for task in too_much:
        print(f"{task}: more than {MAX_GROWTH_BYTES / 1e6:.0f} MB left behind")
    return int(bool(too_much))


if __name__ == "__main__":
    sys.exit(main())
