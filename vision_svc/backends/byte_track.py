"""ByteTrack: boxes of frame after frame become tracks with ids.

Y. Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection Box", ECCV 2022
(https://arxiv.org/abs/2110.06864). In each frame the tracks are moved on by their Kalman filters
and matched with the boxes by overlap: first with the boxes of high scores, then those that are left
with the boxes of low scores, which an object has while something hides it in part. A track without
a box is lost, and is found again at the place where it would be by now. A new track is confirmed by
a second box in the next frame; those of the first frame need none.

The filter is that of N. Wojke et al., "Simple Online and Realtime Tracking with a Deep Association
Metric", ICIP 2017, with its constants: a constant velocity of centre, aspect ratio and height.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[np.float64]"
# Left, top, width and height.
Box: TypeAlias = tuple[float, float, float, float]

# The published limits of a match: the cost is 1 - overlap * score, and 1 - overlap for low scores.
_MAX_COST = 0.8
_MAX_COST_LOW = 0.5
_MAX_COST_UNCONFIRMED = 0.7
# A lost and a current track whose boxes differ by less are of the same object.
_DUPLICATE_COST = 0.15
# For so many frames a lost track can be found again.
MAX_LOST_FRAMES = 30
TRAJECTORY_FRAMES = 30

# Standard deviations of the filter, in heights of the box.
_POSITION, _VELOCITY = 1 / 20, 1 / 160
# Those of the aspect ratio: as predicted, its velocity, as measured.
_RATIO, _RATIO_VELOCITY, _RATIO_MEASURED = 1e-2, 1e-5, 1e-1
_MEASURED = np.eye(4, 8)
_STEP = np.eye(8) + np.eye(8, k=4)


@dataclass(frozen=True)
class Detection:
    """A box in one frame, in pixels, with its label and its score from 0 to 1."""

    box: Box
    label: str
    score: float


@dataclass(eq=False)
class Track:
    """One object.

    Attributes:
        number: its id, from 1; 0 until it is confirmed.
        detection: its box in the last frame in which it was seen.
        trajectory: the boxes of the last `TRAJECTORY_FRAMES` frames in which it was seen.
        labels: how often it had each label.
        seen: the last frame in which it was seen.
    """

    detection: Detection
    seen: int
    mean: Array
    covariance: Array
    number: int = 0
    started: int = 0
    trajectory: deque[Box] = field(default_factory=lambda: deque(maxlen=TRAJECTORY_FRAMES))
    labels: Counter[str] = field(default_factory=Counter)

    @property
    def label(self) -> str:
        """The label that most of its frames had."""
        return self.labels.most_common(1)[0][0]

    @property
    def box(self) -> Box:
        """Where the filter has it."""
        x, y, ratio, height = (float(value) for value in self.mean[:4])
        width = ratio * height
        return x - width / 2, y - height / 2, width, height


class ByteTrack:
    """The tracks of one video.

    Args:
        high_score: boxes from this score on start tracks and are matched first.
        low_score: boxes from this score on continue tracks.
    """

    def __init__(self, high_score: float, low_score: float) -> None:
        self._high, self._low = high_score, low_score
        self._tracks: list[Track] = []
        self._frame = 0
        self._last_number = 0

    def update(self, detections: Sequence[Detection]) -> list[Track]:
        """Moves on by one frame; returns the confirmed tracks seen in it, by their ids."""
        self._frame += 1
        high = [d for d in detections if d.score >= self._high]
        low = [d for d in detections if self._low <= d.score < self._high]
        last = self._frame - 1
        known = [track for track in self._tracks if track.number]
        unconfirmed = [track for track in self._tracks if not track.number]
        _predict(known, last)

        left, high = self._match(known, high, _MAX_COST, by_score=True)
        self._match([t for t in left if t.seen == last], low, _MAX_COST_LOW, by_score=False)
        _, high = self._match(unconfirmed, high, _MAX_COST_UNCONFIRMED, by_score=True)
        for track in unconfirmed:
            if track.seen == self._frame:
                self._confirm(track)
        fresh = [self._start(detection) for detection in high]

        oldest = self._frame - MAX_LOST_FRAMES
        known += [track for track in unconfirmed if track.number]
        self._tracks = [*_without_duplicates([t for t in known if t.seen >= oldest], self._frame)]
        self._tracks += fresh
        seen = [t for t in self._tracks if t.number and t.seen == self._frame]
        return sorted(seen, key=lambda track: track.number)

    def _match(
        self, tracks: list[Track], detections: list[Detection], limit: float, *, by_score: bool
    ) -> tuple[list[Track], list[Detection]]:
        """Gives tracks their boxes of this frame; returns the tracks and boxes that are left."""
        overlap = overlaps([t.box for t in tracks], [d.box for d in detections])
        if by_score:
            overlap = overlap * np.array([d.score for d in detections])
        pairs = assign(1 - overlap, limit)
        for row, column in pairs:
            self._see(tracks[row], detections[column])
        rows, columns = {row for row, _ in pairs}, {column for _, column in pairs}
        return (
            [track for row, track in enumerate(tracks) if row not in rows],
            [each for column, each in enumerate(detections) if column not in columns],
        )

    def _see(self, track: Track, detection: Detection) -> None:
        _correct(track, _measurement(detection.box))
        self._note(track, detection)

    def _note(self, track: Track, detection: Detection) -> None:
        track.detection, track.seen = detection, self._frame
        track.trajectory.append(detection.box)
        track.labels[detection.label] += 1

    def _start(self, detection: Detection) -> Track:
        mean = np.concatenate([_measurement(detection.box), np.zeros(4)])
        height = mean[3]
        deviations = [2 * _POSITION * height] * 4 + [10 * _VELOCITY * height] * 4
        deviations[2], deviations[6] = _RATIO, _RATIO_VELOCITY
        track = Track(detection, self._frame, mean, np.diag(np.square(deviations)))
        track.started = self._frame
        self._note(track, detection)
        if self._frame == 1:
            self._confirm(track)
        return track

    def _confirm(self, track: Track) -> None:
        self._last_number += 1
        track.number = self._last_number


def overlaps(ours: Sequence[Box], theirs: Sequence[Box]) -> Array:
    """The intersection over the union of each of our boxes with each of theirs."""
    a, b = np.array(ours).reshape(-1, 1, 4), np.array(theirs).reshape(1, -1, 4)
    start = np.maximum(a[..., :2], b[..., :2])
    end = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    both = np.maximum(end - start, 0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - both
    result: Array = both / np.maximum(union, 1e-9)
    return result


def assign(costs: Array, limit: float) -> list[tuple[int, int]]:
    """The pairs (row, column) of the least total cost, where a pair over `limit` is none.

    By shortest augmenting paths: D. F. Crouse, "On implementing 2D rectangular assignment
    algorithms", IEEE Transactions on Aerospace and Electronic Systems 52 (4), 2016.
    """
    if not costs.size:
        return []
    if costs.shape[0] > costs.shape[1]:
        return sorted((row, column) for column, row in assign(costs.T, limit))
    capped = np.minimum(costs, limit)
    rows, columns = capped.shape
    of_row, of_column = np.zeros(rows), np.zeros(columns)  # the dual variables
    row_of = np.full(columns, -1)
    for start in range(rows):
        shortest = np.full(columns, np.inf)
        before = np.full(columns, -1)
        done = np.zeros(columns, np.bool_)
        visited = [start]
        row, least, column = start, 0.0, -1
        while row >= 0:
            ways = least + capped[row] - of_row[row] - of_column
            better = ~done & (ways < shortest)
            shortest[better], before[better] = ways[better], row
            column = int(np.argmin(np.where(done, np.inf, shortest)))
            least = float(shortest[column])
            done[column] = True
            row = int(row_of[column])
            if row >= 0:
                visited.append(row)
        of_row[start] += least
        column_of = {int(r): c for c, r in enumerate(row_of) if r >= 0}
        for other in visited[1:]:
            of_row[other] += least - shortest[column_of[other]]
        of_column[done] -= least - shortest[done]
        while True:  # along the path, each row takes the column of the next
            row = int(before[column])
            row_of[column] = row
            if row == start:
                break
            column = column_of[row]
    pairs = ((int(row), column) for column, row in enumerate(row_of) if row >= 0)
    return sorted((row, column) for row, column in pairs if costs[row, column] <= limit)


def _measurement(box: Box) -> Array:
    """Centre, ratio of width to height, and height."""
    left, top, width, height = box
    height = max(height, 1e-3)  # of a box without area there is no ratio
    return np.array([left + width / 2, top + height / 2, width / height, height])


def _predict(tracks: Sequence[Track], last: int) -> None:
    """Moves tracks on by one frame; the height of a lost one no longer changes."""
    if not tracks:
        return
    means = np.stack([track.mean for track in tracks])
    means[[track.seen < last for track in tracks], 7] = 0
    height = np.abs(means[:, 3:4])
    deviations = height * ([_POSITION] * 4 + [_VELOCITY] * 4)
    deviations[:, 2], deviations[:, 6] = _RATIO, _RATIO_VELOCITY
    covariances = _STEP @ np.stack([track.covariance for track in tracks]) @ _STEP.T
    covariances += deviations[:, :, None] ** 2 * np.eye(8)
    for track, mean, covariance in zip(tracks, means @ _STEP.T, covariances, strict=True):
        track.mean, track.covariance = mean, covariance


def _correct(track: Track, measured: Array) -> None:
    deviations = np.full(4, _POSITION * abs(track.mean[3]))
    deviations[2] = _RATIO_MEASURED
    expected = _MEASURED @ track.covariance @ _MEASURED.T + np.diag(np.square(deviations))
    gain = np.linalg.solve(expected, _MEASURED @ track.covariance).T
    track.mean = track.mean + gain @ (measured - track.mean[:4])
    track.covariance = track.covariance - gain @ expected @ gain.T


def _without_duplicates(tracks: list[Track], frame: int) -> list[Track]:
    """Leaves out the younger one of a lost and a current track at the same place."""
    current = [track for track in tracks if track.seen == frame]
    lost = [track for track in tracks if track.seen < frame]
    same = 1 - overlaps([t.box for t in current], [t.box for t in lost]) < _DUPLICATE_COST
    doubled: set[Track] = set()
    for i, j in np.argwhere(same):
        ours, theirs = current[i], lost[j]
        older = ours.seen - ours.started > theirs.seen - theirs.started
        doubled.add(theirs if older else ours)
    return [track for track in tracks if track not in doubled]
