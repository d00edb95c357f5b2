"""Stops the work for a caller who has gone: between batches, and inside `generate`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from shared.errors import CallCancelledError

# Short texts that a model reads at once; thousands would need gigabytes.
MAX_BATCH_TEXTS = 128


def raise_if_cancelled(cancelled: threading.Event) -> None:
    """Ends the work of a caller who has gone.

    Raises:
        CallCancelledError: the event is set.
    """
    if cancelled.is_set():
        raise CallCancelledError("the call was cancelled")


def in_batches(texts: list[str], cancelled: threading.Event) -> Iterator[list[str]]:
    """At most MAX_BATCH_TEXTS of the texts at a time. Raises what `raise_if_cancelled` does."""
    for start in range(0, len(texts), MAX_BATCH_TEXTS):
        raise_if_cancelled(cancelled)
        yield texts[start : start + MAX_BATCH_TEXTS]


class _CancelProcessor(LogitsProcessor):
    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        raise_if_cancelled(self._cancelled)
        return scores


def cancel_processor(cancelled: threading.Event, *others: LogitsProcessor) -> LogitsProcessorList:
    """The `logits_processor` that makes `generate` raise as `raise_if_cancelled`, at each token.

    A stopping criterion would not do: Whisper would go on with the next 30 seconds of sound, and
    Janus ignores it while it draws.

    Args:
        cancelled: set when the caller has gone.
        others: processors that come after this one.
    """
    return LogitsProcessorList([_CancelProcessor(cancelled), *others])
