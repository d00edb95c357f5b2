"""Prometheus metrics of vision_svc, in addition to those of every gRPC server."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

from vision_svc.frames.types import SkipReason

# From 0.1 ms, decoding a raw frame, to 1 s, a heavy task on a busy machine.
_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

FRAMES_RECEIVED = Counter("vision_frames_received", "Frames and pictures received.", ["task"])
FRAMES_ANSWERED = Counter("vision_frames_answered", "Frames and pictures answered.", ["task"])
FRAMES_DROPPED = Counter(
    "vision_frames_dropped", "Frames replaced by newer ones (policy latest).", ["task"]
)
FRAMES_SKIPPED = Counter(
    "vision_frames_skipped", "Frames answered without a result, by the reason.", ["task", "reason"]
)
DECODE_SECONDS = Histogram(
    "vision_decode_seconds", "Time from bytes to pixels.", ["task"], buckets=_BUCKETS
)
INFERENCE_SECONDS = Histogram(
    "vision_inference_seconds", "Time from pixels to the result.", ["task"], buckets=_BUCKETS
)
OPEN_STREAMS = Gauge("vision_open_streams", "Streams that have sent a frame.", ["task"])
INSTANCES = Gauge("vision_instances", "Task instances in memory, idle ones included.", ["task"])
HUNG = Counter("vision_hung_threads", "Threads that did not come to the end of their work.")
FAILED_GRAPHS = Counter("vision_failed_graphs", "MediaPipe graphs that failed.", ["task"])


@dataclass(frozen=True)
class TaskMetrics:
    """The metrics of one task, looked up once instead of for each frame."""

    received: Counter
    answered: Counter
    dropped: Counter
    skipped: Mapping[str, Counter]
    decode_seconds: Histogram
    inference_seconds: Histogram
    open_streams: Gauge
    instances: Gauge
    failed_graphs: Counter


@functools.cache
def of_task(name: str) -> TaskMetrics:
    """The metrics of a task by its name. From the first call on they exist, with the value 0.

    A counter that appears with its first event is 1 when Prometheus first sees it, and `increase`
    does not show that event.
    """
    return TaskMetrics(
        received=FRAMES_RECEIVED.labels(name),
        answered=FRAMES_ANSWERED.labels(name),
        dropped=FRAMES_DROPPED.labels(name),
        skipped={
            reason.name: FRAMES_SKIPPED.labels(name, reason.name.lower()) for reason in SkipReason
        },
        decode_seconds=DECODE_SECONDS.labels(name),
        inference_seconds=INFERENCE_SECONDS.labels(name),
        open_streams=OPEN_STREAMS.labels(name),
        instances=INSTANCES.labels(name),
        failed_graphs=FAILED_GRAPHS.labels(name),
    )
