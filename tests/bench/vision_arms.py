"""The three ways to run a vision task that the benchmark compares."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import simplejpeg

from ml import mediapipe_pb2 as pb
from tests.integration.vision.reference import REFERENCES
from tests.support.stack import Stack
from tools import vision_clips

WARM_UP_FRAMES = 5
# Frames that a client of (c) keeps on their way: sent and not answered yet.
IN_FLIGHT = 8
FORMATS = ("jpeg", "rgb")
SERVICE = "/ml.MediapipeService/"


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
        if task == "hands":
            images = list(vision_clips.moving_hand(frames))
        else:
            images = list(vision_clips.moving(vision_clips.astronaut(), frames))
        jpegs = [simplejpeg.encode_jpeg(np.ascontiguousarray(i), quality=85) for i in images]
        payloads = {"jpeg": jpegs, "rgb": [image.tobytes() for image in images]}
        messages = {
            name: [
                pb.VideoFrame(
                    frame_data=data, format=name, width=640, height=480, frame_number=number
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


class Wire:
    """Streams to the service through Envoy. Messages are made beforehand, answers not parsed."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._processes = {name: stack.pids[name] for name in ("vision_svc", "envoy")}
        self._processes["client"] = os.getpid()

    def run(
        self,
        task: str,
        clip: Clip,
        name: str,
        *,
        streams: int,
        seconds: float,
        in_flight: int = IN_FLIGHT,
    ) -> Run:
        """Frames as fast as they are answered, with at most `in_flight` of them on their way."""
        ready = threading.Barrier(streams + 1)
        stop = threading.Event()
        runs = [Run() for _ in range(streams)]

        def work(run: Run) -> None:
            sent: list[float] = []
            free = threading.Semaphore(in_flight)

            def frames() -> Iterator[bytes]:
                for message in itertools.cycle(clip.messages[name]):
                    free.acquire()
                    if stop.is_set():
                        return
                    sent.append(time.perf_counter())
                    yield message

            with self._stack.channel() as channel:
                for number, _ in enumerate(_stream(channel, task, frames())):
                    if number == WARM_UP_FRAMES:
                        ready.wait()
                    elif number > WARM_UP_FRAMES and not stop.is_set():
                        run.latencies.append(time.perf_counter() - sent[number])
                    free.release()

        workers = [threading.Thread(target=work, args=(run,)) for run in runs]
        for worker in workers:
            worker.start()
        ready.wait()
        begin, before = time.perf_counter(), thread_times(self._processes)
        time.sleep(seconds)
        stop.set()
        taken, after = time.perf_counter() - begin, thread_times(self._processes)
        for worker in workers:
            worker.join()
        threads: dict[tuple[str, str], float] = {}
        for thread, (group, spent) in after.items():
            _, spent_before = before.get(thread, (group, 0.0))
            threads[group] = threads.get(group, 0.0) + spent - spent_before
        cpu = sum(spent for (process, _), spent in threads.items() if process != "client")
        latencies = [latency for run in runs for latency in run.latencies]
        return Run(len(latencies), taken, cpu, latencies, threads)

    def clocks(self, task: str, clip: Clip, name: str, frames: int = 30) -> list[pb.FrameTiming]:
        """What the service says of frames that come one at a time."""
        free = threading.Semaphore(1)

        def one_by_one() -> Iterator[bytes]:
            for message in itertools.islice(itertools.cycle(clip.messages[name]), frames):
                free.acquire()
                yield message

        timings = []
        with self._stack.channel() as channel:
            for answer in _stream(channel, task, one_by_one()):
                timings.append(_RESPONSES[task].FromString(answer).timing)
                free.release()
        return timings[WARM_UP_FRAMES:]

    def ages(self, task: str, clip: Clip, *, fps: float, seconds: float) -> list[float]:
        """Ages of frames when their answers come, under the policy "latest", in seconds."""
        sent: dict[int, float] = {}

        def frames() -> Iterator[bytes]:
            begin = time.perf_counter()
            for number in range(int(fps * seconds)):
                time.sleep(max(0.0, begin + number / fps - time.perf_counter()))
                sent[number] = time.perf_counter()
                data = clip.jpegs[number % len(clip.jpegs)]
                yield pb.VideoFrame(
                    frame_data=data, format="jpeg", frame_number=number
                ).SerializeToString()

        ages = []
        with self._stack.channel() as channel:
            for answer in _stream(channel, task, frames(), [("frame-policy", "latest")]):
                number = _frame_number(task, answer)
                ages.append(time.perf_counter() - sent[number])
        return ages[WARM_UP_FRAMES:]


def thread_times(processes: Mapping[str, int]) -> dict[int, tuple[tuple[str, str], float]]:
    """By thread: its process and group, and the CPU seconds it has had (Linux, nanoseconds)."""
    times = {}
    for process, pid in processes.items():
        for folder in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that has ended meanwhile
                name = (folder / "comm").read_text().strip()
                spent = int((folder / "schedstat").read_text().split()[0]) / 1e9
                group = "main" if int(folder.name) == pid else name
                times[int(folder.name)] = ((process, group), spent)
    return times


_RESPONSES = {
    "faces": pb.FaceDetectionResponse,
    "mesh": pb.FaceMeshResponse,
    "iris": pb.IrisTrackingResponse,
    "hands": pb.HandDetectionResponse,
    "pose": pb.PoseDetectionResponse,
    "holistic": pb.HolisticTrackingResponse,
    "selfie": pb.SegmentationResponse,
    "hair": pb.SegmentationResponse,
}


def _frame_number(task: str, answer: bytes) -> int:
    return int(_RESPONSES[task].FromString(answer).frame_number)


def _stream(
    channel: grpc.Channel,
    task: str,
    messages: Iterator[bytes],
    metadata: list[tuple[str, str]] | None = None,
) -> Iterator[bytes]:
    call = channel.stream_stream(SERVICE + REFERENCES[task].rpc)
    answers: Iterator[bytes] = call(messages, metadata=metadata)
    return answers
