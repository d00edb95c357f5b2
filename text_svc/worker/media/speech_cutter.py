"""Cuts a sound that is still arriving into pieces that a speech model can transcribe one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ml import transformers_pb2 as pb
from text_svc.worker.media.decode import Samples

# The loudness of the sound is measured in windows of this length.
WINDOW_SECONDS = 0.02
# A window is quiet below this RMS value, or below this share of the piece's loudest window.
QUIET, QUIET_SHARE = 0.004, 0.1
# A pause ends a piece: a short one once the piece is long enough to be understood, else a long one.
SHORT_PAUSE_SECONDS, ENOUGH_SECONDS, LONG_PAUSE_SECONDS = 0.5, 5.0, 1.0
# Without a pause, a piece of the maximum length ends in the quietest window of its last part.
SEARCHED_SHARE = 1 / 3


@dataclass(frozen=True)
class Piece:
    """A part of the sound.

    Attributes:
        start: its first sample in the sound, in seconds.
        samples: shape (samples,).
    """

    start: float
    samples: Samples

    def shift(self, segments: list[pb.TranscriptSegment]) -> list[pb.TranscriptSegment]:
        """Changes the times of the piece's segments to those in the sound; returns the segments."""
        for segment in segments:
            segment.start += self.start
            segment.end += self.start
        return segments


class SpeechCutter:
    """Takes samples as they arrive and returns pieces as they end. Silence in between is dropped.

    Args:
        rate: samples a second.
        max_seconds: of a piece.
    """

    def __init__(self, rate: int, max_seconds: float) -> None:
        self._rate = rate
        self._window_size = int(rate * WINDOW_SECONDS)
        self._max_windows = int(max_seconds / WINDOW_SECONDS)
        self._begun = 0  # samples of the sound before the growing piece
        self._partial = np.empty(0, np.float32)  # less than a window
        self._windows: list[Samples] = []
        self._levels: list[float] = []
        self._loudest = 0.0
        self._quiet = 0  # windows at the end of the piece

    @property
    def seconds(self) -> float:
        """The length of the sound before the growing piece."""
        return self._begun / self._rate

    def end_of(self, piece: Piece) -> float:
        """The end of a piece in the sound, in seconds."""
        return piece.start + len(piece.samples) / self._rate

    def add(self, samples: Samples) -> Iterator[Piece]:
        """The pieces that end in these samples."""
        samples = np.concatenate([self._partial, samples])
        whole = len(samples) // self._window_size * self._window_size
        self._partial = samples[whole:]
        for window in samples[:whole].reshape(-1, self._window_size):
            self._windows.append(window)
            self._levels.append(level := float(np.sqrt(np.mean(window * window))))
            self._loudest = max(self._loudest, level)
            quiet = level < max(QUIET, QUIET_SHARE * self._loudest)
            self._quiet = self._quiet + 1 if quiet else 0
            if (end := self._find_end()) and (piece := self._end_piece(end)):
                yield piece

    def rest(self) -> Piece | None:
        """The last piece, at the end of the sound; None if it is silence."""
        self._windows.append(self._partial)
        self._partial = np.empty(0, np.float32)
        return self._end_piece(len(self._windows))

    def _find_end(self) -> int:
        """Windows of the piece that ends here; 0 while it goes on."""
        windows = len(self._windows)
        enough = windows * WINDOW_SECONDS >= ENOUGH_SECONDS
        pause = SHORT_PAUSE_SECONDS if enough else LONG_PAUSE_SECONDS
        if self._quiet * WINDOW_SECONDS >= pause:
            return windows - self._quiet // 2
        if windows < self._max_windows:
            return 0
        searched = int(windows * (1 - SEARCHED_SHARE))
        return searched + int(np.argmin(self._levels[searched:])) + 1

    def _end_piece(self, windows: int) -> Piece | None:
        """Ends the piece after its first `windows`; None if it is silence."""
        samples, start = np.concatenate(self._windows[:windows]), self.seconds
        audible = self._loudest >= QUIET
        self._begun += len(samples)
        self._windows, self._levels = self._windows[windows:], self._levels[windows:]
        self._loudest = max(self._levels, default=0.0)
        self._quiet = min(self._quiet, len(self._windows))
        return Piece(start, samples) if audible and len(samples) else None
