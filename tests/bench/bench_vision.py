"""Vision tasks: MediaPipe alone, with decoding, and our streams through Envoy, in one run.

`python -m tests.bench.bench_vision` prints tables and writes out/bench/vision.json, .md and .png.
It starts the stack that it measures. (a) is MediaPipe's call on decoded frames, (b) decodes first,
(c) is a tonic client's stream through Envoy, with eight frames on their way, or one where latency
is measured. All run interleaved. `--short` leaves raw frames out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.bench.machine import quiet_machine
from tests.bench.results import parser_of, publish
from tests.bench.rust_client import RustClient, add_option
from tests.bench.vision_arms import FORMATS, Clip, Run, run_library
from tests.bench.vision_report import plot, table
from tests.bench.vision_wire import IN_FLIGHT, Wire, wire_to
from tests.integration.vision.reference import REFERENCES
from tests.support.stack import VISION, stack_in
from tools.models import model_dir
from vision_svc.process_setup import tune_allocator

STREAMS = (1, 2, 4)
SENDER_FPS = 60.0


def percentile(runs: list[Run], q: float) -> float:
    """Of all latencies of some runs, in milliseconds."""
    return float(np.percentile([each for run in runs for each in run.latencies], q) * 1000)


def summary(runs: list[Run]) -> dict[str, float]:
    """The medians of some runs of one arm."""
    return {
        "fps": statistics.median(run.fps for run in runs),
        "p50_ms": percentile(runs, 50),
        "p99_ms": percentile(runs, 99),
        "cpu_ms": statistics.median(run.cpu_ms for run in runs),
    }


def measure(
    wire: Wire, folder: Path, task: str, clip: Clip, name: str, options: argparse.Namespace
) -> dict[str, Any]:
    """All arms of one task and format, a stretch each in turn, some rounds."""
    runs: dict[str, list[Run]] = {}

    def library(decode: bool, threads: int) -> Run:
        return run_library(
            folder, task, clip, name, decode=decode, threads=threads, seconds=options.seconds
        )

    def streams(count: int, in_flight: int = IN_FLIGHT) -> Run:
        return wire.run(
            task, clip, name, streams=count, seconds=options.seconds, in_flight=in_flight
        )

    for _ in range(options.rounds):
        runs.setdefault("a1", []).append(library(False, 1))
        for count in STREAMS:
            runs.setdefault(f"b{count}", []).append(library(True, count))
            runs.setdefault(f"c{count}", []).append(streams(count))
        runs.setdefault("c1 lock step", []).append(streams(1, in_flight=1))
    return {arm: summary(each) for arm, each in runs.items()}


def measure_all(rust: RustClient | None, options: argparse.Namespace) -> dict[str, Any]:
    """Every task, through a stack of its own for all."""
    folder = model_dir() / "vision"
    tasks: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as run_dir, stack_in(Path(run_dir)) as stack:
        stack.wait_serving([VISION])
        wire = wire_to(stack, rust, Path(run_dir))
        for task in options.tasks:
            print(f"measuring {task}", flush=True)
            clip = Clip.of(task)
            figures: dict[str, Any] = {
                name: measure(wire, folder, task, clip, name, options) for name in options.formats
            }
            ages = wire.ages(task, clip, fps=SENDER_FPS, seconds=2 * options.seconds)
            figures["latest"] = {
                "p50_ms": float(np.percentile(ages, 50) * 1000),
                "p95_ms": float(np.percentile(ages, 95) * 1000),
            }
            tasks[task] = figures
    return {
        "client": wire.client,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "tasks": tasks,
    }


def parse_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=REFERENCES, default=list(REFERENCES))
    parser.add_argument("--formats", nargs="+", choices=FORMATS)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one stretch")
    parser.add_argument("--rounds", type=int, default=3)
    add_option(parser)
    options = parser.parse_args()
    options.formats = options.formats or (FORMATS[:1] if options.short else FORMATS)
    return options


def main() -> None:
    """Entry point."""
    options = parse_arguments()
    rust = RustClient.chosen(options.client)
    tune_allocator()  # as the service does: the arms differ in nothing but the way
    cv2.setNumThreads(1)
    with quiet_machine(busy=options.busy) as machine:
        report = measure_all(rust, options)
    publish(options.out, "vision", machine, report, table(report))
    plot(report, options.out / "vision.png")


if __name__ == "__main__":
    main()
