"""ByteTrack beside another implementation, on a scene with crossings and gaps."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from tests.support.crossing_boxes import SceneBox, crossing_boxes
from vision_svc.backends.byte_track import (
    MAX_LOST_FRAMES,
    TRAJECTORY_FRAMES,
    ByteTrack,
    Detection,
    Track,
    assign,
    overlaps,
)

# What PyPI's trackers 2.6.1 gives on this scene: ByteTrackTracker(lost_track_buffer=30,
# track_activation_threshold=0.5, high_conf_det_threshold=0.5, minimum_iou_threshold=0.2). Each
# object has one id, on so many of its boxes; false boxes have none. (It needs opencv-python, whose
# files are those of opencv-python-headless, so it cannot be installed beside vision_svc.)
TRACKERS_BOXES_WITH_IDS = {0: 144, 1: 149, 2: 145, 3: 149, 4: 137, 5: 128}
TRACKERS_IDF1 = 0.9965


def detection(box: SceneBox) -> Detection:
    left, top, right, bottom = box.xyxy
    return Detection((left, top, right - left, bottom - top), "thing", box.score)


def run(tracker: ByteTrack) -> Counter[tuple[int, int]]:
    """How many boxes of each object (-1: false ones) got each id (0: none)."""
    counts: Counter[tuple[int, int]] = Counter()
    for boxes in crossing_boxes():
        detections = [detection(box) for box in boxes]
        numbers = {id(track.detection): track.number for track in tracker.update(detections)}
        for box, each in zip(boxes, detections, strict=True):
            counts[box.owner, numbers.get(id(each), 0)] += 1
    return counts


def idf1(counts: Counter[tuple[int, int]]) -> float:
    """E. Ristani et al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera
    Tracking", 2016: the share of boxes with the right id, under the best pairing of ids."""
    owners = sorted({owner for owner, _ in counts if owner >= 0})
    numbers = sorted({number for _, number in counts if number})
    right = np.array([[counts[owner, number] for number in numbers] for owner in owners])
    rows, columns = linear_sum_assignment(right, maximize=True)
    true = sum(n for (owner, _), n in counts.items() if owner >= 0)
    given = sum(n for (_, number), n in counts.items() if number)
    return float(2 * right[rows, columns].sum() / (true + given))


def test_ids_outlast_crossings_and_gaps_as_with_trackers() -> None:
    counts = run(ByteTrack(0.5, 0.1))
    with_ids = {pair: n for pair, n in counts.items() if pair[1]}
    assert {owner for owner, _ in with_ids} == set(TRACKERS_BOXES_WITH_IDS)
    assert len(with_ids) == len(TRACKERS_BOXES_WITH_IDS)  # no object has two ids, no id two objects
    assert len({number for _, number in with_ids}) == len(with_ids)
    for (owner, _), n in with_ids.items():
        assert abs(n - TRACKERS_BOXES_WITH_IDS[owner]) <= 2
    assert idf1(counts) == pytest.approx(TRACKERS_IDF1, abs=0.02)


def test_boxes_of_low_scores_carry_tracks_through() -> None:
    """What ByteTrack is for: without them, half hidden objects lose boxes."""
    only_high = run(ByteTrack(0.5, 0.5))
    assert idf1(run(ByteTrack(0.5, 0.1))) > idf1(only_high) + 0.005


def boxes(*where: float, score: float = 0.9, label: str = "cup") -> list[Detection]:
    return [Detection((x, 100.0, 50.0, 80.0), label, score) for x in where]


def numbers(tracks: list[Track]) -> list[int]:
    return [track.number for track in tracks]


def test_a_hidden_object_keeps_its_id_for_30_frames_and_no_longer() -> None:
    for hidden, number in ((MAX_LOST_FRAMES - 1, 1), (MAX_LOST_FRAMES + 1, 0)):
        tracker = ByteTrack(0.5, 0.1)
        for _ in range(5):
            assert numbers(tracker.update(boxes(10))) == [1]
        for _ in range(hidden):
            assert tracker.update([]) == []
        assert numbers(tracker.update(boxes(10))) == ([number] if number else [])
        assert numbers(tracker.update(boxes(10))) == [number or 2]


def test_a_box_seen_once_gets_no_id_and_takes_none() -> None:
    tracker = ByteTrack(0.5, 0.1)
    tracker.update(boxes(10))
    assert numbers(tracker.update(boxes(10, 300))) == [1]
    assert numbers(tracker.update(boxes(10))) == [1]
    assert numbers(tracker.update(boxes(10, 500))) == [1]
    assert numbers(tracker.update(boxes(10, 501))) == [1, 2]


def test_low_scores_continue_tracks_and_start_none() -> None:
    tracker = ByteTrack(0.5, 0.1)
    tracker.update(boxes(10))
    for _ in range(5):
        (track,) = tracker.update(boxes(10, 300, score=0.2))
        assert (track.number, track.detection.score) == (1, 0.2)
    assert tracker.update(boxes(10, score=0.05)) == []


def test_trajectories_have_the_last_30_boxes_and_labels_the_most_votes() -> None:
    tracker = ByteTrack(0.5, 0.1)
    for frame in range(40):
        (track,) = tracker.update(boxes(frame, label="mug" if frame % 3 == 0 else "cup"))
        assert track.trajectory[-1] == (frame, 100.0, 50.0, 80.0)
    assert track.label == "cup"
    assert [box[0] for box in track.trajectory] == list(range(40 - TRAJECTORY_FRAMES, 40))


def test_boxes_without_area_and_beyond_the_picture_do_no_harm() -> None:
    tracker = ByteTrack(0.5, 0.1)
    strange = [
        Detection((-1e6, -1e6, 0.0, 0.0), "a", 0.9),
        Detection((5.0, 5.0, 1e6, 0.0), "b", 0.9),
        Detection((0.0, 0.0, 1e6, 1e6), "c", 0.9),
    ]
    for _ in range(60):
        tracks = tracker.update([*strange, *boxes(10)])
        assert 4 in numbers(tracks)
        assert all(np.isfinite(track.mean).all() for track in tracks)


def test_assignments_have_the_least_cost() -> None:
    random = np.random.default_rng(1)
    for _ in range(300):
        costs = random.random((random.integers(1, 12), random.integers(1, 12)))
        limit = float(random.choice([0.3, 0.8, 2.0]))
        pairs = assign(costs, limit)
        rows, columns = linear_sum_assignment(np.minimum(costs, limit))
        least = float(np.minimum(costs, limit)[rows, columns].sum())
        unmatched = min(costs.shape) - len(pairs)
        ours = sum(costs[pair] for pair in pairs) + limit * unmatched
        assert ours == pytest.approx(least)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    assert assign(np.zeros((0, 3)), 1) == []
    assert overlaps([], [(0, 0, 1, 1)]).shape == (0, 1)


def test_many_boxes_at_once_are_matched_in_time() -> None:
    """A hundred boxes anywhere in each frame: no attack on the tracker makes it slow."""
    random = np.random.default_rng(2)
    tracker = ByteTrack(0.5, 0.1)
    for _ in range(40):
        tracker.update(
            [
                Detection((*map(float, random.random(2) * 400), 60.0, 60.0), "x", 0.9)
                for _ in range(100)
            ]
        )
    assert len(tracker._tracks) < 100 * (MAX_LOST_FRAMES + 1)
