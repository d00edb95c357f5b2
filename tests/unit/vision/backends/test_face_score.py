"""The scores of faces: from the detector, renewed after some frames and when a face moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tools import vision_clips
from tools.models import model_dir
from vision_svc.backends.face_score import (
    FRAMES_PER_SCORE,
    FaceScorer,
)
from vision_svc.backends.landmarks import (
    POINT,
    Points,
)

# The astronaut's face, in fractions of the picture: left, top, right, bottom.
FACE = (0.36, 0.13, 0.52, 0.36)


def points(left: float, top: float, right: float, bottom: float) -> Points:
    """A mesh of 478 points that fills a box, with level eyes."""
    middle = (top + bottom) / 2
    mesh = np.zeros(478, POINT)
    mesh["x"], mesh["y"] = (left + right) / 2, middle
    mesh["y"][10], mesh["y"][152] = top, bottom
    mesh["x"][[33, 234]] = left
    mesh["x"][[263, 454]] = right
    return mesh


@pytest.fixture(scope="module")
def bundle() -> Path:
    path = model_dir() / "vision" / "face_landmarker.task"
    if not path.is_file():
        pytest.skip(f"there is no {path}: run `make models`")
    return path


@pytest.fixture
def scorer(bundle: Path) -> FaceScorer:
    return FaceScorer(bundle)


def test_a_face_scores_high_and_a_wall_low(scorer: FaceScorer) -> None:
    picture = vision_clips.astronaut()
    (face,) = scorer.scores(picture, [points(*FACE)])
    (suit,) = scorer.scores(picture, [points(0.4, 0.7, 0.6, 0.95)])
    assert face > 0.8
    assert suit < 0.4


def test_a_leaning_face_is_turned_upright(scorer: FaceScorer) -> None:
    picture = np.ascontiguousarray(np.rot90(vision_clips.astronaut()))
    left, top, right, bottom = FACE
    mesh = points(top, 1 - right, bottom, 1 - left)  # the box after a quarter turn to the left
    middle = (top + bottom) / 2
    mesh["x"][[33, 263]] = middle
    mesh["y"][33], mesh["y"][263] = 1 - left, 1 - right
    assert scorer.scores(picture, [mesh])[0] > 0.8


def test_a_score_is_valid_for_some_frames(scorer: FaceScorer) -> None:
    picture = vision_clips.astronaut()
    nothing = np.zeros_like(picture)
    first = scorer.scores(picture, [points(*FACE)])
    for _ in range(FRAMES_PER_SCORE - 1):
        assert scorer.scores(nothing, [points(*FACE)]) == first
    assert scorer.scores(nothing, [points(*FACE)])[0] < 0.3


def test_a_face_that_moves_is_scored_again(scorer: FaceScorer) -> None:
    picture = vision_clips.astronaut()
    scorer.scores(picture, [points(*FACE)])
    left, top, right, bottom = FACE
    moved = points(left + 0.4, top, right + 0.4, bottom)
    assert scorer.scores(picture, [moved])[0] < 0.5


def test_each_face_has_its_own_score(scorer: FaceScorer) -> None:
    picture = vision_clips.astronaut()
    both = [points(0.4, 0.7, 0.6, 0.95), points(*FACE)]
    suit, face = scorer.scores(picture, both)
    assert suit < 0.4 < 0.8 < face
    assert scorer.scores(picture, both[::-1]) == [face, suit]
