"""A film whose shots, labels and features are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ml import mediapipe_pb2 as pb
from shared.errors import InputTooLargeError, OutOfRangeError
from tests.unit.vision.scenes.fakes import marked_subjects
from vision_svc.frames.types import DecodedFrame, EncodedFrame, SkippedFrame, SkipReason
from vision_svc.options import parse_options
from vision_svc.scenes import sequence
from vision_svc.scenes.inputs import FrameFeatures
from vision_svc.scenes.sequence import MediaSequence
from vision_svc.tasks import STREAM_TASKS

Film = Callable[..., pb.MediaSequenceResponse]


@pytest.fixture
def film(tmp_path: Path) -> Film:
    def run(
        images: Sequence[np.ndarray],
        features: Sequence[dict[str, float]] = (),
        first_number: int = 0,
        skipped: Sequence[int] = (),
        **options: str,
    ) -> pb.MediaSequenceResponse:
        chosen = parse_options(STREAM_TASKS["media-sequence"].options, options)
        work = MediaSequence(*marked_subjects(tmp_path))
        for place, image in enumerate(images):
            values = FrameFeatures(features[place] if features else {})
            number = place + first_number if first_number else 0
            source = EncodedFrame(b"", "rgb", timestamp_ms=place * 40, number=number, extra=values)
            if place in skipped:
                assert not work.skip(SkippedFrame(source, SkipReason.LOST))
            else:
                assert not work.follow(DecodedFrame(image, source, 0.0), chosen)
        (answer,) = work.finish(chosen)
        assert isinstance(answer.response, pb.MediaSequenceResponse)
        return answer.response

    return run


def picture(background: int, *, face: bool = False, dog: bool = False) -> np.ndarray:
    image = np.full((60, 80, 3), background, np.uint8)
    image[0, :, 0] = image[-1, :, 1] = background
    if face:
        image[0, [20, 40], 0] = 255
    if dog:
        image[-1, 5, 1] = 250
    return image


def labels(response: pb.MediaSequenceResponse) -> list[tuple[str, int, int]]:
    return [(label.label, label.start_frame, label.end_frame) for label in response.labels]


def test_shots_and_what_is_seen_in_them(film: Film) -> None:
    images = [
        *(picture(40, face=20 <= n < 35, dog=n < 10) for n in range(40)),
        *(picture(200, face=True) for _ in range(25)),
    ]
    response = film(images, sample_every="5")
    assert labels(response) == [
        *(("shot", 0, 39), ("shot", 40, 64)),
        *(("dog", 0, 5), ("face", 20, 30), ("face", 40, 60)),
    ]
    assert response.total_frames == 65
    first, second, dog, face, _ = response.labels
    assert first.confidence == 1.0
    assert 0.2 < second.confidence <= 1.0
    assert (second.start_ms, second.end_ms) == (1600, 2560)
    assert dog.confidence == pytest.approx(250 / 255)
    assert face.confidence == pytest.approx(0.9)
    assert response.timing.inference_ms > 0


def test_frames_have_the_callers_numbers_if_there_are_any(film: Film) -> None:
    images = [picture(40, face=n > 3) for n in range(12)]
    response = film(images, first_number=1000, sample_every="1")
    assert labels(response) == [("shot", 1000, 1011), ("face", 1004, 1011)]


def test_one_search_without_them_ends_no_label(film: Film) -> None:
    seen = [True, True, False, True, False, False, True]
    response = film([picture(40, face=face) for face in seen], sample_every="1")
    assert labels(response)[1:] == [("face", 0, 3), ("face", 6, 6)]


@pytest.mark.parametrize(("subjects", "found"), [("faces", {"face"}), ("objects", {"dog"})])
def test_only_some_subjects(film: Film, subjects: str, found: set[str]) -> None:
    response = film([picture(40, face=True, dog=True)] * 3, subjects=subjects)
    assert {label.label for label in response.labels} == {"shot", *found}


def test_features_are_summed_up(film: Film) -> None:
    features = [{"loud": 1.0, "a_mean": 4.0}, {"loud": -3.0}, {"loud": 8.0, "late": 0.5}]
    response = film([picture(40)] * 3, features)
    assert dict(response.features) == {
        "loud_mean": 2.0,
        "loud_min": -3.0,
        "loud_max": 8.0,
        "a_mean_mean": 4.0,
        "a_mean_min": 4.0,
        "a_mean_max": 4.0,
        "late_mean": 0.5,
        "late_min": 0.5,
        "late_max": 0.5,
    }


def test_skipped_frames_are_no_part_of_the_film(film: Film) -> None:
    assert film([picture(40)] * 10, skipped=[0, 4]).total_frames == 8


def test_a_film_without_frames(film: Film) -> None:
    assert film([]) == pb.MediaSequenceResponse(timing=pb.FrameTiming())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_must_be_finite(film: Film, value: float) -> None:
    with pytest.raises(OutOfRangeError, match="'loud' must be a finite number"):
        film([picture(40)], [{"loud": value}])


def test_features_are_limited(film: Film) -> None:
    with pytest.raises(InputTooLargeError, match="1000 features"):
        film([picture(40)] * 2, [{f"f{n}": 1.0 for n in range(k, k + 600)} for k in (0, 600)])
    with pytest.raises(OutOfRangeError, match="at most 200 characters, not 201"):
        film([picture(40)], [{"f" * 201: 1.0}])


def test_labels_are_limited(film: Film, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "MAX_LABELS", 2)
    with pytest.raises(InputTooLargeError, match="more than 2 shots and labels"):
        film([picture(40, face=True, dog=True)])
