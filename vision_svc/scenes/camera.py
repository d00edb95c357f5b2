"""The camera of auto flip: where a crop of fixed size stands in each frame.

The crop is as large as fits into the frame, so it moves along one axis only. Lengths here are in
pixels along that axis, times in seconds.

A smooth camera stands still while its subject is near the middle of the crop. It follows a subject
that leaves it, with the motion of a critically damped spring (Lowe, "Critically Damped Ease-In/
Ease-Out Smoothing", Game Programming Gems 4, 1.10), which has no jerks and does not overshoot, and
stands still again when the subject does. A subject that is faster than the spring stays in the crop
all the same, since the crop then moves with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vision_svc.scenes import FACE_LABEL

if TYPE_CHECKING:
    from vision_svc.scenes.subjects import Seen

# How far a subject may be from the middle before the camera follows, in parts of the crop, and how
# near it must be before it stops.
_START, _STOP = 0.12, 0.02
# The spring follows a change of place within about twice this time.
SMOOTH_SECONDS = 0.4
# Slower than this part of the crop in a second is standing still.
_STANDING = 0.03
# Nor does the crop move by more than this many times its size in a second: subjects that are that
# fast are others.
_MAX_SPEED = 3.0
# A subject's side of the crop stays free by this part of the crop.
_MARGIN = 0.03
# A subject that is not detected for some time is believed to be where it was.
_HOLD_SECONDS = 1.0
# The subject changes if another one weighs this many times as much.
_CHANGE = 1.5
# How wide a person is around the face, on each side, in widths of the face.
_BESIDE_FACE = 0.5

# Of the one-euro filter (Casiez, Roussel, Vogel: "1 € Filter", 2012): detections tremble by some
# pixels while the subject stands still, and must not lag while it runs. In 1/s; the speed is in
# crops per second.
_CUTOFF, _CUTOFF_BY_SPEED, _SPEED_CUTOFF = 1.0, 12.0, 1.5


@dataclass(frozen=True)
class Span:
    """A part of the axis, and how fast it moves."""

    begin: float
    end: float
    speed: float = 0.0

    @property
    def middle(self) -> float:
        return (self.begin + self.end) / 2

    @property
    def length(self) -> float:
        return self.end - self.begin

    def shares(self, other: Span) -> bool:
        """Whether they have a part in common."""
        return self.begin < other.end and other.begin < self.end


class OneEuroFilter:
    """Smooths a value, less so the faster it changes."""

    def __init__(self, unit: float) -> None:
        self._unit = unit
        self._value: float | None = None
        self.speed = 0.0

    def smooth(self, value: float, seconds: float) -> float:
        last = self._value
        if last is None:
            self._value = value
            return value
        self.speed += _share(_SPEED_CUTOFF, seconds) * ((value - last) / seconds - self.speed)
        cutoff = _CUTOFF + _CUTOFF_BY_SPEED * abs(self.speed) / self._unit
        self._value = last + _share(cutoff, seconds) * (value - last)
        return self._value


def _share(cutoff: float, seconds: float) -> float:
    """How much of a change a low-pass filter lets through in this time."""
    step = 2 * math.pi * cutoff * seconds
    return step / (step + 1)


class SubjectTrack:
    """Which part of the frame the crop should show, from what was seen in each frame.

    Args:
        side: the frame's side along the axis.
        crop: the crop's.
        axis: 0 if the crop moves from left to right, 1 if it moves from top to bottom.
    """

    def __init__(self, side: float, crop: float, axis: int) -> None:
        self._side = side
        self._crop = crop
        self._axis = axis
        self.begin_shot()

    def begin_shot(self) -> None:
        """Forgets the subject."""
        self._subject: Span | None = None
        self._unseen = 0.0
        self._ends = self._filters()

    def update(self, seen: Sequence[Seen], seconds: float) -> Span | None:
        """The subject in a frame, smoothed; None if there is none."""
        parts = [(self._span(each), _weight(each)) for each in seen]
        chosen = self._choose(sorted(parts, key=lambda part: -part[1]))
        if chosen is None:
            self._unseen += seconds
            if self._unseen > _HOLD_SECONDS:
                self.begin_shot()
            return self._subject
        if self._subject is None or not chosen.shares(self._subject):
            self._ends = self._filters()  # another subject: no way leads from one to the other
        self._unseen = 0.0
        begin, end = (
            filtered.smooth(value, seconds)
            for filtered, value in zip(self._ends, (chosen.begin, chosen.end), strict=True)
        )
        self._subject = Span(begin, end, sum(each.speed for each in self._ends) / 2)
        return self._subject

    def _choose(self, parts: Sequence[tuple[Span, float]]) -> Span | None:
        """The main subject, and with it as many others as fit into the crop, heaviest first."""
        if not parts:
            return None
        main = parts[0]
        if self._subject is not None:
            same = [part for part in parts if part[0].shares(self._subject)]
            if same and main[1] < _CHANGE * same[0][1]:
                main = same[0]
        chosen = main[0]
        room = self._crop * (1 - 2 * _MARGIN)
        for span, _ in parts:
            both = Span(min(chosen.begin, span.begin), max(chosen.end, span.end))
            if both.length <= room:
                chosen = both
        return chosen

    def _span(self, seen: Seen) -> Span:
        begin, end = seen.box[self._axis], seen.box[self._axis + 2]
        beside = _BESIDE_FACE * (end - begin) if seen.label == FACE_LABEL else 0.0
        return Span(max(0.0, begin - beside) * self._side, min(1.0, end + beside) * self._side)

    def _filters(self) -> tuple[OneEuroFilter, OneEuroFilter]:
        return OneEuroFilter(self._crop), OneEuroFilter(self._crop)


def _weight(seen: Seen) -> float:
    """How much a subject counts: people more than things, and large ones more than small ones."""
    left, top, right, bottom = seen.box
    kind = {FACE_LABEL: 8.0, "person": 4.0}.get(seen.label.lower(), 1.0)
    return kind * seen.score * math.sqrt(max(0.0, right - left) * max(0.0, bottom - top))


class Camera:
    """Where the crop begins on the axis.

    Args:
        side: the frame's side along the axis.
        crop: the crop's.
        still: whether it stays in one place until the next cut.
    """

    def __init__(self, side: float, crop: float, *, still: bool = False) -> None:
        self._room = side - crop
        self._crop = crop
        self._still = still
        self._speed = 0.0
        self._moves = False
        self._has_caught = False
        self.position = self._room / 2

    def cut(self, goal: float | None) -> None:
        """Begins a shot, at once in its place.

        Args:
            goal: the middle of the subject, if there is one.
        """
        self._speed, self._moves, self._has_caught = 0.0, False, False
        self.position = self._inside(self._room / 2 if goal is None else goal - self._crop / 2)

    def move(
        self, goal: float | None, subject: Span | None, seconds: float, ahead_seconds: float = 0.0
    ) -> None:
        """Goes on by one frame.

        Args:
            goal: the middle of the subject, or of where it is in the next frames; None to stay.
            subject: where it is now.
            seconds: the time since the frame before.
            ahead_seconds: how far the goal lies ahead of the present frame.
        """
        if self._still:
            return
        before = self.position
        middle = before + self._crop / 2
        away = 0.0 if goal is None else abs(goal - middle) / self._crop
        if not self._moves:
            self._moves = away > _START
        elif away < _STOP and abs(self._speed) < _STANDING * self._crop:
            self._moves, self._speed = False, 0.0
        position = before
        if self._moves and goal is not None:
            # A spring follows what moves evenly with a lag of its own time: aim so far ahead.
            lag = max(0.0, SMOOTH_SECONDS - ahead_seconds)
            lead = lag * subject.speed if subject else 0.0
            position = self._spring(goal + lead - self._crop / 2, seconds)
        elif self._moves:  # the subject is lost: come to rest
            position = self._spring(before + self._speed * SMOOTH_SECONDS / 2, seconds)
        position = self._inside(position)
        if subject is not None:
            kept = self._inside(self._keep(position, subject))
            self._has_caught |= kept == position
            if self._has_caught and kept != position:
                reach = _MAX_SPEED * self._crop * seconds
                self._moves, position = True, min(max(kept, before - reach), before + reach)
        else:
            self._has_caught = False
        if position in (0.0, self._room) or abs(position - before) < 1e-9:
            self._speed = 0.0
        self.position = position

    def _spring(self, target: float, seconds: float) -> float:
        """A step of a critically damped spring from the position to the target."""
        omega = 2 / SMOOTH_SECONDS
        x = omega * seconds
        decay = 1 / (1 + x + 0.48 * x * x + 0.235 * x * x * x)
        change = self.position - target
        pull = (self._speed + omega * change) * seconds
        self._speed = (self._speed - omega * pull) * decay
        return target + (change + pull) * decay

    def _keep(self, position: float, subject: Span) -> float:
        """The position nearest to this one in which the crop holds the subject.

        A subject that is larger than the crop fills it.
        """
        free = max(0.0, min(_MARGIN * self._crop, (self._crop - subject.length) / 2))
        low, high = sorted((subject.end + free - self._crop, subject.begin - free))
        return min(max(position, low), high)

    def _inside(self, position: float) -> float:
        return min(max(position, 0.0), self._room)
