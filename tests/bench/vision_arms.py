"""The clips of the vision benchmark, and MediaPipe in this process."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg

from ml import mediapipe_pb2 as pb
from tests.integration.vision.reference import REFERENCES, clip_for

WARM_UP_FRAMES = 5
FORMATS = ("jpeg", "rgb")


@dataclass
class Run:
    """Figures of one stretch of time.

    Attributes:
        frames: how many were answered.
        seconds: how long it took.
        cpu_seconds: of the processes that did the work, without the benchmark's own client.
        latencies: of single frames, in seconds.
        threads: CPU seconds of each group of threads of all processes, the client's too.
    """

    frames: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    threads: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def fps(self) -> float:
        return self.frames / self.seconds

    @property
    def cpu_ms(self) -> float:
        return self.cpu_seconds / max(1, self.frames) * 1000


@dataclass(frozen=True)
class Clip:
    """Frames of 640 x 480: decoded, and as they are sent."""

    images: list[np.ndarray]
    jpegs: list[bytes]
    messages: dict[str, list[bytes]]

    @classmethod
    def of(cls, task: str, frames: int = 60) -> Clip:
        images = clip_for(task, frames)
        jpegs = [simplejpeg.encode_jpeg(np.ascontiguousarray(i), quality=85) for i in images]
        payloads = {"jpeg": jpegs, "rgb": [image.tobytes() for image in images]}
        messages = {
            name: [
                pb.VideoFrame(
                    frame_data=data,
                    format=name,
                    width=640,
                    height=480,
                    frame_number=number,
                    metadata=REFERENCES[task].options_sent,
                ).SerializeToString()
                for number, data in enumerate(data_of)
            ]
            for name, data_of in payloads.items()
        }
        return cls(images, jpegs, messages)

    def source(self, name: str, decode: bool) -> Iterator[Callable[[], np.ndarray]]:
        """What brings each frame's pixels, over and over."""
        if decode and name == "jpeg":
            return itertools.cycle([lambda d=d: simplejpeg.decode_jpeg(d) for d in self.jpegs])
        return itertools.cycle([lambda i=i: i for i in self.images])


def run_library(
    folder: Path, task: str, clip: Clip, name: str, *, decode: bool, threads: int, seconds: float
) -> Run:
    """MediaPipe in this process, a task object and a thread for each stream."""
    ready = threading.Barrier(threads + 1)
    stop = threading.Event()
    runs = [Run() for _ in range(threads)]

    def work(run: Run) -> None:
        sources = clip.source(name, decode)
        started = [0.0]

        def frames() -> Iterator[np.ndarray]:
            for number in itertools.count():
                if number == WARM_UP_FRAMES:
                    ready.wait()
                if stop.is_set():
                    return
                started[0] = time.perf_counter()
                yield next(sources)()

        with closing(REFERENCES[task].run(folder, frames())) as results:
            for number, _ in enumerate(results):
                if number >= WARM_UP_FRAMES and not stop.is_set():
                    run.latencies.append(time.perf_counter() - started[0])

    workers = [threading.Thread(target=work, args=(run,)) for run in runs]
    for worker in workers:
        worker.start()
    ready.wait()
    begin, cpu = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    stop.set()
    taken, cpu = time.perf_counter() - begin, time.process_time() - cpu
    for worker in workers:
        worker.join()
    latencies = [latency for run in runs for latency in run.latencies]
    return Run(len(latencies), taken, cpu, latencies)
