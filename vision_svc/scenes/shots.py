"""Shot cuts: a frame whose colours are others than those of the frame before.

The difference of two frames is the Bhattacharyya distance of their histograms over hue,
saturation and brightness (OpenCV's HISTCMP_BHATTACHARYYA), from 0 to 1. Later frames are not looked
at, so a cut is known at once, without a delay. A dissolve has no cut, and a camera that pans fast
changes its picture in every frame: the difference must stand out from those of the frames before.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from vision_svc.frames.types import Rgb

# The least difference of a cut. On clips of ten photographs, cuts differ by 0.25 to 0.83, and
# frames of a camera that moves over one by 0.08 at most.
MIN_DIFFERENCE = 0.2
# A cut differs by this many times as much as the last frames did on average.
TIMES_BEFORE = 3.0
_FRAMES_BEFORE = 8
# A flash, or a cut back, within this time after a cut is none. PySceneDetect's default is 15
# frames.
MIN_SHOT_SECONDS = 0.5

# About as many pixels are looked at along the longer side.
_SAMPLES = 160
_BINS = (12, 6, 6)
_RANGES = (0.0, 180.0, 0.0, 256.0, 0.0, 256.0)


class ShotDetector:
    """Finds cuts in the frames of one stream."""

    def __init__(self) -> None:
        self._last: npt.NDArray[np.float32] | None = None
        self._before: deque[float] = deque(maxlen=_FRAMES_BEFORE)
        self._age = 0.0

    def cut(self, image: Rgb, seconds: float) -> float:
        """Whether a new shot begins with this frame.

        Args:
            image: the frame.
            seconds: the time since the frame before.

        Returns:
            The difference from the frame before, from 0 to 1, if this is a cut, and 1 for the first
            frame; otherwise 0.
        """
        histogram = _histogram(image)
        last, self._last = self._last, histogram
        if last is None:
            return 1.0
        self._age += seconds
        difference = float(cv2.compareHist(last, histogram, cv2.HISTCMP_BHATTACHARYYA))
        usual = sum(self._before) / len(self._before) if self._before else 0.0
        self._before.append(difference)
        if self._age < MIN_SHOT_SECONDS or difference < max(MIN_DIFFERENCE, TIMES_BEFORE * usual):
            return 0.0
        self._before.clear()
        self._age = 0.0
        return min(1.0, difference)


def _histogram(image: Rgb) -> npt.NDArray[np.float32]:
    """How often each colour occurs; the sum is 1."""
    step = max(1, max(image.shape[:2]) // _SAMPLES)
    hsv = cv2.cvtColor(np.ascontiguousarray(image[::step, ::step]), cv2.COLOR_RGB2HSV)
    counts: npt.NDArray[Any] = np.asarray(cv2.calcHist([hsv], [0, 1, 2], None, _BINS, _RANGES))
    # Neighbouring bins share their counts: a small change of the light is a small difference.
    for axis in (0, 1, 2):
        counts = 0.5 * counts + 0.25 * (_shifted(counts, 1, axis) + _shifted(counts, -1, axis))
    histogram: npt.NDArray[np.float32] = (counts / counts.sum()).astype(np.float32)
    return histogram


def _shifted(counts: npt.NDArray[Any], step: int, axis: int) -> npt.NDArray[Any]:
    """The counts of the neighbouring bins: hues are a circle, the others end."""
    moved: npt.NDArray[Any] = np.roll(counts, step, axis)
    if axis:
        edge = [slice(None)] * 3
        edge[axis] = slice(0, 1) if step > 0 else slice(-1, None)
        moved[tuple(edge)] = counts[tuple(edge)]
    return moved
