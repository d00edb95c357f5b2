"""Cuts a sound that is still growing into pieces that a model of speech can hear one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from text_svc.worker.media.decode import Samples

FRAME_SECONDS = 0.02
# A frame is quiet below this effective value, or below this share of the piece's loudest frame.
QUIET, QUIET_SHARE = 0.004, 0.1
# A pause ends a piece: a short one once the piece has enough to be understood, else a long one.
SHORT_PAUSE_SECONDS, ENOUGH_SECONDS, LONG_PAUSE_SECONDS = 0.5, 5.0, 1.0
# Where there is no pause, the cut is in the quietest place of the last part of what fits.
SEARCHED_SHARE = 1 / 3


@dataclass(frozen=True)
class Piece:
    """A part of the sound: where it starts, in seconds, and its samples."""

    start: float
    samples: Samples


class SpeechCutter:
    """Takes samples as they come and gives pieces as they end; silence between them is left out.

    Args:
        rate: samples a second.
        longest: seconds that a piece may have.
    """

    def __init__(self, rate: int, longest: float) -> None:
        self._rate = rate
        self._frame = int(rate * FRAME_SECONDS)
        self._limit = int(longest / FRAME_SECONDS)
        self._begun = 0  # samples of the sound before the piece
        self._left = np.empty(0, np.float32)  # less than a frame
        self._frames: list[Samples] = []
        self._levels: list[float] = []
        self._loudest = 0.0
        self._quiet = 0  # frames at the end of the piece

    @property
    def seconds(self) -> float:
        """What lies before the piece that grows: it is worked through."""
        return self._begun / self._rate

    def end_of(self, piece: Piece) -> float:
        """Where a piece ends, in seconds."""
        return piece.start + len(piece.samples) / self._rate

    def add(self, samples: Samples) -> Iterator[Piece]:
        """The pieces that end in these samples."""
        samples = np.concatenate([self._left, samples])
        whole = len(samples) // self._frame * self._frame
        self._left = samples[whole:]
        for frame in samples[:whole].reshape(-1, self._frame):
            self._frames.append(frame)
            self._levels.append(level := float(np.sqrt(np.mean(frame * frame))))
            self._loudest = max(self._loudest, level)
            quiet = level < max(QUIET, QUIET_SHARE * self._loudest)
            self._quiet = self._quiet + 1 if quiet else 0
            if end := self._end():
                piece = self._cut(end)
                if piece:
                    yield piece

    def rest(self) -> Piece | None:
        """What has not ended, at the end of the sound."""
        self._frames.append(self._left)
        self._left = np.empty(0, np.float32)
        return self._cut(len(self._frames))

    def _end(self) -> int:
        """Frames of the piece that ends here; 0 when it goes on."""
        frames = len(self._frames)
        pause = (
            SHORT_PAUSE_SECONDS
            if frames * FRAME_SECONDS >= ENOUGH_SECONDS
            else (LONG_PAUSE_SECONDS)
        )
        if self._quiet * FRAME_SECONDS >= pause:
            return frames - self._quiet // 2
        if frames < self._limit:
            return 0
        searched = int(frames * (1 - SEARCHED_SHARE))
        return searched + int(np.argmin(self._levels[searched:])) + 1

    def _cut(self, end: int) -> Piece | None:
        """Ends the piece after so many frames; None when it was silence."""
        samples, start = np.concatenate(self._frames[:end]), self.seconds
        heard = self._loudest >= QUIET
        self._begun += len(samples)
        self._frames, self._levels = self._frames[end:], self._levels[end:]
        self._loudest = max(self._levels, default=0.0)
        self._quiet = min(self._quiet, len(self._frames))
        return Piece(start, samples) if heard and len(samples) else None
