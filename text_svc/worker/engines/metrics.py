"""Figures of one model's engine, written where the front's metrics page finds them.

prometheus_client keeps them in files of the folder PROMETHEUS_MULTIPROC_DIR when that is set; the
front reads those files (`text_svc.metrics`), so a scrape costs the worker nothing.
"""

from __future__ import annotations

from prometheus_client import Gauge, Histogram

_GAP_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

_RUNNING = Gauge(
    "text_running_answers", "Answers generated now.", ["model"], multiprocess_mode="livesum"
)
_WAITING = Gauge(
    "text_waiting_answers",
    "Answers that wait for their turn.",
    ["model"],
    multiprocess_mode="livesum",
)
_BATCH = Histogram(
    "text_batch_answers",
    "Answers that one step of the engine brought forward.",
    ["model"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
_GAP = Histogram(
    "text_token_gap_seconds",
    "Time between two pieces of an answer, a token as a rule.",
    ["model"],
    buckets=_GAP_BUCKETS,
)
_WAITING_TEXTS = Gauge(
    "text_waiting_texts", "Texts that wait to be embedded.", ["model"], multiprocess_mode="livesum"
)
_BATCH_TEXTS = Histogram(
    "text_batch_texts",
    "Texts that were embedded in one batch.",
    ["model"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)


class EngineMetrics:
    """The figures of one model."""

    def __init__(self, model: str) -> None:
        self._running = _RUNNING.labels(model)
        self._waiting = _WAITING.labels(model)
        self._batch = _BATCH.labels(model)
        self._gap = _GAP.labels(model)

    def answers(self, running: int, waiting: int) -> None:
        """How many answers the engine has."""
        self._running.set(running)
        self._waiting.set(waiting)

    def step(self, answers: int) -> None:
        """A step has brought so many answers forward."""
        self._batch.observe(answers)

    def gap(self, seconds: float) -> None:
        """An answer's next piece came so long after the last."""
        self._gap.observe(seconds)


class EmbeddingMetrics:
    """The figures of one encoder."""

    def __init__(self, model: str) -> None:
        self._waiting = _WAITING_TEXTS.labels(model)
        self._batch = _BATCH_TEXTS.labels(model)

    def batch(self, texts: int, waiting: int) -> None:
        """A batch of so many texts begins, and so many wait."""
        self._batch.observe(texts)
        self._waiting.set(waiting)

    def waiting(self, texts: int) -> None:
        """So many texts wait."""
        self._waiting.set(texts)
