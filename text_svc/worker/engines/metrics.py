"""Metrics of one model's engine, for the metrics page of text_svc.

prometheus_client keeps them in files in the folder PROMETHEUS_MULTIPROC_DIR. text_svc reads those
files (`text_svc.metrics`), so a scrape does not cost the worker anything.
"""

from __future__ import annotations

from prometheus_client import Gauge, Histogram

from text_svc.worker.counting import observe

_GAP_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

_RUNNING = Gauge(
    "text_running_answers", "Generations that run.", ["model"], multiprocess_mode="livesum"
)
_WAITING = Gauge(
    "text_waiting_answers",
    "Generations that wait in the queue.",
    ["model"],
    multiprocess_mode="livesum",
)
# Also of models that embed. A label for each caller would be without bounds.
WAITING_CALLERS = Gauge(
    "text_waiting_callers",
    "Callers of whom something waits.",
    ["model"],
    multiprocess_mode="livesum",
)
_BATCH = Histogram(
    "text_batch_answers",
    "Generations in one step of the engine.",
    ["model"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
_GAP = Histogram(
    "text_token_gap_seconds",
    "Time between two pieces of a generated text; a piece is a token as a rule.",
    ["model"],
    buckets=_GAP_BUCKETS,
)


class EngineMetrics:
    """The metrics of one model that generates."""

    def __init__(self, model: str) -> None:
        self._running = _RUNNING.labels(model)
        self._waiting = _WAITING.labels(model)
        self._batch = _BATCH.labels(model)
        self._callers = WAITING_CALLERS.labels(model)
        self._gap = _GAP.labels(model)

    def generations(self, running: int, waiting: int, callers: int) -> None:
        """Sets how many generations the engine has, and of how many callers those are that wait."""
        self._callers.set(callers)
        self._running.set(running)
        self._waiting.set(waiting)

    def step(self, generations: int) -> None:
        """Counts a step with this many generations."""
        observe(self._batch, generations)

    def gap(self, seconds: float) -> None:
        """Counts the time between two pieces of a generated text."""
        observe(self._gap, seconds)
