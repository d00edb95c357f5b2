"""Metrics of one encoder, kept as those of `engines.metrics`."""

from __future__ import annotations

from prometheus_client import Gauge, Histogram

from text_svc.worker.counting import observe
from text_svc.worker.engines.metrics import WAITING_CALLERS

_WAITING_TEXTS = Gauge(
    "text_waiting_texts", "Texts that wait to be embedded.", ["model"], multiprocess_mode="livesum"
)
_BATCH_TEXTS = Histogram(
    "text_batch_texts",
    "Texts in one embedding batch.",
    ["model"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)


class EmbeddingMetrics:
    """The metrics of one encoder."""

    def __init__(self, model: str) -> None:
        self._callers = WAITING_CALLERS.labels(model)
        self._waiting = _WAITING_TEXTS.labels(model)
        self._batch = _BATCH_TEXTS.labels(model)

    def batch(self, texts: int, waiting: int, callers: int) -> None:
        """Counts a batch that starts, and sets what waits; see `waiting`."""
        observe(self._batch, texts)
        self.waiting(waiting, callers)

    def waiting(self, texts: int, callers: int) -> None:
        """Sets how many texts wait, and of how many callers."""
        self._waiting.set(texts)
        self._callers.set(callers)
