"""A made scene of boxes whose tracks are known: crossings, gaps, low scores and false boxes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

FRAMES = 150
# x and y of the centre in the first frame, their speeds in pixels a frame, width and height.
_OBJECTS = (
    (60, 200, 3.6, 0.0, 60, 120),
    (600, 210, -3.6, 0.0, 64, 126),  # crosses the first one
    (300, 20, 0.3, 2.4, 80, 60),
    (320, 420, -0.4, -2.2, 76, 62),  # crosses the third one
    (120, 400, 1.5, -0.2, 50, 50),
    (500, 90, 0.0, 0.0, 90, 70),  # stands still
)
# Object, first and last frame: hidden, without a box; half hidden, with a low score.
_HIDDEN = ((4, 50, 61), (5, 70, 90), (0, 110, 114), (2, 30, 33))
_HALF_HIDDEN = ((0, 70, 80), (3, 84, 92), (4, 46, 49), (4, 62, 64))
_FALSE_BOX_EVERY = 23  # frames


@dataclass(frozen=True)
class SceneBox:
    """A box in one frame: left, top, right, bottom, its score, and whose it is (-1: nobody's)."""

    xyxy: tuple[float, float, float, float]
    score: float
    owner: int


def crossing_boxes() -> Iterator[list[SceneBox]]:
    """The boxes that a detector finds, frame after frame; the same in every run."""
    noise = _noise()
    for frame in range(FRAMES):
        boxes = []
        for owner, (x, y, across, down, width, height) in enumerate(_OBJECTS):
            sway = 4 * math.sin(frame / 9 + owner)
            centre = x + across * frame + sway, y + down * frame
            box = (
                *(centre[0] - width / 2 + next(noise), centre[1] - height / 2 + next(noise)),
                *(centre[0] + width / 2 + next(noise), centre[1] + height / 2 + next(noise)),
            )
            score = 0.8 + next(noise) / 20
            if _within(_HALF_HIDDEN, owner, frame):
                score -= 0.5
            if not _within(_HIDDEN, owner, frame):
                boxes.append(SceneBox(box, score, owner))
        if frame % _FALSE_BOX_EVERY == 11:
            left = 200 + 9 * frame % 300
            boxes.append(SceneBox((left, 300, left + 40, 340), 0.75, -1))
        yield boxes


def _within(spans: tuple[tuple[int, int, int], ...], owner: int, frame: int) -> bool:
    return any(who == owner and first <= frame <= last for who, first, last in spans)


def _noise() -> Iterator[float]:
    """Numbers from -2 to 2 that no library changes."""
    for number in count(1):
        yield (math.sin(number * 12.9898) * 43758.5453 % 1) * 4 - 2
