"""Streams of a vision task through Envoy, from this process or from a tonic client."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc

from ml import mediapipe_pb2 as pb
from tests.bench.rust_client import PYTHON, TONIC, RustClient
from tests.bench.vision_arms import WARM_UP_FRAMES, Clip, Run
from tests.integration.vision.reference import REFERENCES
from tests.support.stack import Stack

# Frames that a client keeps on their way: sent and not answered yet.
IN_FLIGHT = 8
SERVICE = "/ml.MediapipeService/"

Threads = dict[int, tuple[tuple[str, str], float]]


class Wire:
    """Streams from this process. Messages are made beforehand, answers not parsed."""

    client = PYTHON

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._servers = {name: stack.pids[name] for name in ("vision_svc", "envoy")}

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
        processes = self._servers | {"client": os.getpid()}
        begin, before = time.perf_counter(), thread_times(processes)
        time.sleep(seconds)
        stop.set()
        taken, after = time.perf_counter() - begin, thread_times(processes)
        for worker in workers:
            worker.join()
        latencies = [latency for run in runs for latency in run.latencies]
        return _run(latencies, taken, spent_between(before, after))

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


class TonicWire(Wire):
    """Streams from a tonic client, which reads the frames from files.

    Args:
        stack: what serves.
        rust: the client.
        folder: for the frames.
    """

    client = TONIC

    def __init__(self, stack: Stack, rust: RustClient, folder: Path) -> None:
        super().__init__(stack)
        self._rust = rust
        self._folder = folder

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
        marks: dict[str, Threads] = {}
        outcome = self._rust.run(
            "video",
            lambda mark: marks.update({mark: thread_times(self._servers)}),
            source=self._source(task, clip, name),
            streams=streams,
            in_flight=in_flight,
            seconds=seconds,
            warm_up=WARM_UP_FRAMES,
        )
        threads = spent_between(marks["begin"], marks["end"])
        threads["client", "tonic"] = outcome["client_cpu_seconds"]
        return _run(outcome["latencies"], outcome["seconds"], threads)

    def ages(self, task: str, clip: Clip, *, fps: float, seconds: float) -> list[float]:
        outcome = self._rust.run(
            "paced_video",
            source=self._source(task, clip, "jpeg"),
            fps=fps,
            frames=int(fps * seconds),
            warm_up=WARM_UP_FRAMES,
        )
        ages: list[float] = outcome["ages"]
        return ages

    def _source(self, task: str, clip: Clip, name: str) -> dict[str, Any]:
        """The frames of a clip as the load generator takes them, in files."""
        folder = self._folder / f"{task}-{name}"
        if not folder.exists():
            folder.mkdir()
            frames = clip.jpegs if name == "jpeg" else [image.tobytes() for image in clip.images]
            for number, frame in enumerate(frames):
                (folder / f"{number:04}").write_bytes(frame)
        return {
            "endpoint": f"http://{self._stack.addresses['envoy']}",
            "rpc": REFERENCES[task].rpc,
            "files": [str(path) for path in sorted(folder.iterdir())],
            "format": name,
            "width": 640,
            "height": 480,
        }


def wire_to(stack: Stack, rust: RustClient | None, folder: Path) -> Wire:
    """The tonic client where there is one."""
    return TonicWire(stack, rust, folder) if rust else Wire(stack)


def _run(latencies: list[float], seconds: float, threads: dict[tuple[str, str], float]) -> Run:
    cpu = sum(spent for (process, _), spent in threads.items() if process != "client")
    return Run(len(latencies), seconds, cpu, latencies, threads)


def spent_between(before: Threads, after: Threads) -> dict[tuple[str, str], float]:
    """CPU seconds of each group of threads."""
    groups: dict[tuple[str, str], float] = {}
    for thread, (group, spent) in after.items():
        _, spent_before = before.get(thread, (group, 0.0))
        groups[group] = groups.get(group, 0.0) + spent - spent_before
    return groups


def thread_times(processes: Mapping[str, int]) -> Threads:
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
    "objects": pb.ObjectDetectionResponse,
    "tracks": pb.ObjectTrackingResponse,
    "boxes3d": pb.ObjectDetection3DResponse,
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
