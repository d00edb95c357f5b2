"""The time from frame to frame of a stream."""

from __future__ import annotations

from vision_svc.instances import DEFAULT_STEP_MS, MAX_STEP_MS


class StreamClock:
    """The time from frame to frame, in seconds, by the caller's clock where that makes sense."""

    def __init__(self) -> None:
        self._last: int | None = None

    def step(self, timestamp_ms: int) -> float:
        """The time since the frame before."""
        last, self._last = self._last, timestamp_ms
        step = DEFAULT_STEP_MS if last is None else timestamp_ms - last
        return (step if 0 < step <= MAX_STEP_MS else DEFAULT_STEP_MS) / 1000
