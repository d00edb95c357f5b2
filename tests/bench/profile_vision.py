"""Where a frame's time goes: CPU of each kind of thread, and the service's own clocks.

`python -m tests.bench.profile_vision` prints two tables and writes out/bench/vision_profile.md.
One stream runs through Envoy with eight frames on their way, in turns with decoding and MediaPipe's
call in this process. For single functions: `py-spy record --native -p PID` while it runs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from ml import mediapipe_pb2 as pb
from tests.bench.machine import quiet_machine
from tests.bench.results import parser_of, publish
from tests.bench.rust_client import RustClient, add_option
from tests.bench.vision_arms import FORMATS, Clip, Run, run_library
from tests.bench.vision_wire import IN_FLIGHT, wire_to
from tests.integration.vision.reference import REFERENCES
from tests.support.stack import VISION, stack_in
from tools.models import model_dir
from vision_svc.frames.decoder import FrameDecoder
from vision_svc.frames.types import (
    EncodedFrame,
    Limits,
)
from vision_svc.frames.wire import read_frame
from vision_svc.process_setup import tune_allocator

# Columns and the threads that they add up, by process and name; the rest is "other".
COLUMNS: dict[str, Callable[[str, str], bool]] = {
    "client": lambda process, _: process == "client",
    "Envoy": lambda process, _: process == "envoy",
    "sockets": lambda _, name: name.startswith(("event_engine", "grpc")),
    "event loop": lambda _, name: name == "main",
    "decode": lambda _, name: name == "decode",
    "worker": lambda _, name: name == "frame",
    "graph": lambda _, name: name == "drishti",
    "other": lambda _process, _name: True,
}
NOTES = """CPU ms a frame. Of the service: sockets is gRPC's own threads (receiving, sending); event
loop is gRPC's Python side, reading messages, handing over, sending answers; decode is bytes to
pixels; worker is the copy into MediaPipe's image, the call, the message of the answer and, for
masks, the inference itself; graph is MediaPipe's threads. Cores busy is what one stream keeps busy
with the client and Envoy: more streams can be no faster together than this leaves room for."""


def column_of(process: str, name: str) -> str:
    return next(column for column, fits in COLUMNS.items() if fits(process, name))


def cpu_by_column(runs: list[Run]) -> dict[str, float]:
    """CPU milliseconds a frame."""
    frames = sum(len(run.latencies) for run in runs)
    columns = dict.fromkeys(COLUMNS, 0.0)
    for run in runs:
        for (process, name), seconds in run.threads.items():
            columns[column_of(process, name)] += seconds * 1000 / frames
    return columns


def row(task: str, name: str, library: list[Run], runs: list[Run], clocks: list[Any]) -> str:
    """One line of the table."""
    cpu = cpu_by_column(runs)
    service = sum(spent for column, spent in cpu.items() if column not in ("client", "Envoy"))
    marks = [
        statistics.median(getattr(clock, field) for clock in clocks)
        for field in ("decode_ms", "inference_ms", "waiting_ms")
    ]
    cells = [
        task,
        name,
        *(f"{statistics.median(run.fps for run in each):.0f}" for each in (library, runs)),
        f"{statistics.median(run.cpu_ms for run in library):.2f}",
        *(f"{service:.2f}", *(f"{spent:.2f}" for spent in cpu.values())),
        f"{sum(cpu.values()) / 1000 * statistics.median(run.fps for run in runs):.2f}",
        " / ".join(f"{mark:.1f}" for mark in marks),
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = [
    *("task", "format", "(b) fps", "(c) fps", "(b) CPU", "service CPU", *COLUMNS),
    "cores busy",
    "one frame at a time, ms in the service: decode / inference / waiting",
]


def steps(clip: Clip) -> str:
    """Single steps of a frame in this process, in microseconds."""
    decoder = FrameDecoder(Limits())
    lines = ["| step, alone and warm | jpeg µs | rgb µs |", "|---|---|---|"]

    def micros(step: Callable[[], object]) -> str:
        taken = []
        for _ in range(50):
            start = time.perf_counter()
            step()
            taken.append(time.perf_counter() - start)
        return f"{statistics.median(taken) * 1e6:.0f}"

    def decode(name: str) -> object:
        fields, data = read_frame(clip.messages[name][0])
        frame = EncodedFrame(data, fields.format, fields.width, fields.height)
        return list(decoder.decode(frame))

    named: dict[str, Callable[[str], object]] = {
        "protobuf's own reading": lambda name: (
            pb.VideoFrame.FromString(clip.messages[name][0]).frame_data
        ),
        "the service's reading": lambda name: read_frame(clip.messages[name][0]),
        "reading and decoding": decode,
    }
    for step, function in named.items():
        cells = [micros(lambda name=name, f=function: f(name)) for name in FORMATS]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=REFERENCES, default=list(REFERENCES))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--seconds", type=float, default=1.0, help="of one stretch")
    parser.add_argument("--rounds", type=int, default=3)
    add_option(parser)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    rust = RustClient.chosen(options.client)
    tune_allocator()
    cv2.setNumThreads(1)
    folder = model_dir() / "vision"
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    with (
        quiet_machine(busy=options.busy) as machine,
        tempfile.TemporaryDirectory() as run_dir,
        stack_in(Path(run_dir)) as stack,
    ):
        stack.wait_serving([VISION])
        wire = wire_to(stack, rust, Path(run_dir))
        for task in options.tasks:
            clip = Clip.of(task)
            for name in options.formats:
                library, runs = [], []
                for _ in range(options.rounds):
                    library.append(
                        run_library(
                            *(folder, task, clip, name),
                            decode=True,
                            threads=1,
                            seconds=options.seconds,
                        )
                    )
                    runs.append(wire.run(task, clip, name, streams=1, seconds=options.seconds))
                lines.append(row(task, name, library, runs, wire.clocks(task, clip, name)))
        single = steps(clip)
    told = f"640 x 480, {IN_FLIGHT} frames on their way, the client is {wire.client}."
    table = "\n".join([told, "", *lines, "", NOTES, "", single])
    publish(options.out, "vision_profile", machine, {}, table)


if __name__ == "__main__":
    main()
