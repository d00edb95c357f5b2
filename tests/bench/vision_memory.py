"""Memory of vision_svc after many streams: `python -m tests.bench.vision_memory --streams 3000`.

Opens that many short streams of each task, four at a time, and compares what the process holds
after all of them with what it held after the first 30 of each: at most 150 MB more. The full figure
takes hours; a test runs a small one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import grpc

from ml import mediapipe_pb2 as pb
from ml import mediapipe_pb2_grpc as pb_grpc
from tests.support.processes import free_port, process, rss_bytes
from tests.support.stack import MODELS, VISION, is_healthy, open_channel, wait_for
from tools import vision_clips

FIRST_STREAMS = 30
MAX_GROWTH_BYTES = 150_000_000
_AT_ONCE = 4
_FRAMES = 3
# After the last stream: for its detector to be closed, and free memory to be returned.
_REST_SECONDS = 3.0


def stream_tasks() -> list[str]:
    """The RPCs that stream frames of video and answer each."""
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    return [
        method.name
        for method in service.methods
        if method.client_streaming
        and method.server_streaming
        and method.input_type.name == "VideoFrame"
    ]


def frames() -> list[pb.VideoFrame]:
    """A few pictures of a person, as JPEG."""
    pictures = vision_clips.moving(vision_clips.astronaut(), _FRAMES)
    return [
        pb.VideoFrame(
            frame_data=cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes(),
            format="jpeg",
            frame_number=number,
            timestamp_ms=40 * number,
        )
        for number, picture in enumerate(pictures)
    ]


def run_streams(channel: grpc.Channel, task: str, count: int, video: Sequence[Any]) -> None:
    """Runs streams of one task to their ends, some at once.

    Raises:
        grpc.RpcError: one of them failed.
    """
    call = getattr(pb_grpc.MediapipeServiceStub(channel), task)

    def stream(_: int) -> int:
        return sum(1 for _ in call(iter(video)))

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        answered = list(threads.map(stream, range(count)))
    assert answered == [len(video)] * count, (task, answered)


def settled_rss(pid: int) -> int:
    """What a process holds once it rests, in bytes."""
    time.sleep(_REST_SECONDS)
    return rss_bytes(pid)


def has_model(channel: grpc.Channel, task: str) -> bool:
    """Whether a task has its model here, which may be optional."""
    try:
        run_streams(channel, task, 1, frames())
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED):
            print(f"{task}: {error.details()}", flush=True)
            return False
        raise
    return True


def measure(
    channel: grpc.Channel, pid: int, tasks: Sequence[str], streams: int, first: int = FIRST_STREAMS
) -> tuple[int, int]:
    """Bytes held after the first streams of each task, and after all of them.

    Raises:
        grpc.RpcError: a stream failed.
    """
    video = frames()
    tasks = [task for task in tasks if has_model(channel, task)]
    for task in tasks:
        run_streams(channel, task, first, video)
    before = settled_rss(pid)
    for task in tasks:
        run_streams(channel, task, streams - first, video)
        print(f"{task}: {settled_rss(pid) / 1e6:.0f} MB", flush=True)
    return before, settled_rss(pid)


def main() -> int:
    """Measures a service of its own; 1 if it holds too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=3000, help="of each task")
    parser.add_argument("--tasks", nargs="+", default=stream_tasks(), help="RPCs, by default all")
    options = parser.parse_args()
    port = free_port()
    settings = {
        "VISION_PORT": str(port),
        "VISION_METRICS_PORT": "0",
        "VISION_MODEL_DIR": str(MODELS / "vision"),
        "VISION_LOG_LEVEL": "WARNING",
        "VISION_ADMISSION_SECONDS": "0",
    }
    with (
        process("-m", "vision_svc", env=settings) as service,
        open_channel(f"127.0.0.1:{port}") as channel,
    ):
        wait_for("vision_svc serving", lambda: is_healthy(channel, VISION))
        before, after = measure(channel, service.pid, options.tasks, options.streams)
    print(f"{before / 1e6:.0f} MB after {FIRST_STREAMS} streams of each task")
    print(f"{after / 1e6:.0f} MB after {options.streams}")
    return int(after - before > MAX_GROWTH_BYTES)


if __name__ == "__main__":
    sys.exit(main())
