"""Cuts are found where PySceneDetect finds them, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tools import vision_clips
from vision_svc.scenes.shots import ShotDetector

FPS = 30


def cuts(clip: list[np.ndarray]) -> list[int]:
    detector = ShotDetector()
    return [number for number, image in enumerate(clip) if detector.cut(image, 1 / FPS)][1:]


def content_cuts(clip: list[np.ndarray], threshold: float = 27.0, shortest: int = 15) -> list[int]:
    """PySceneDetect's ContentDetector with its defaults (scenedetect 0.7.2).

    Written here because the package wants an OpenCV of its own; on these clips it finds the same.
    A cut is a frame whose mean change of hue, saturation and brightness is over the threshold.
    """
    channels = [cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.int32) for image in clip]
    found: list[int] = []
    for number in range(1, len(clip)):
        score = np.abs(channels[number] - channels[number - 1]).mean(axis=(0, 1)).sum() / 3
        if score >= threshold and number - (found[-1] if found else 0) >= shortest:
            found.append(number)
    return found


def pan(picture: np.ndarray, frames: int, step: int) -> list[np.ndarray]:
    """A camera that moves from left to right over a picture."""
    wide = cv2.resize(picture, (1400, 700), interpolation=cv2.INTER_AREA)
    lefts = [min(number * step, 760) for number in range(frames)]
    return [np.ascontiguousarray(wide[100:580, left : left + 640]) for left in lefts]


@pytest.fixture(scope="module")
def pictures(models: Path) -> list[np.ndarray]:
    return [vision_clips.astronaut(), vision_clips.cat(), vision_clips.coffee()]


def test_cuts_are_those_of_pyscenedetect(pictures: list[np.ndarray]) -> None:
    astronaut, cat, coffee = pictures
    shots = [
        *(pan(cat, 24, 12), list(vision_clips.moving(astronaut, 30)), pan(coffee, 18, 30)),
        *(list(vision_clips.moving(cat, 25)), pan(astronaut, 40, 4), pan(cat[:, ::-1], 20, 0)),
    ]
    starts = np.cumsum([len(shot) for shot in shots])[:-1].tolist()
    clip = [image for shot in shots for image in shot]
    assert cuts(clip) == content_cuts(clip) == starts


@pytest.mark.parametrize("step", [0, 5, 20, 60])
def test_a_camera_that_pans_makes_no_cut(pictures: list[np.ndarray], step: int) -> None:
    for picture in pictures:
        assert cuts(pan(picture, 30, step)) == []


def test_light_that_changes_makes_no_cut(pictures: list[np.ndarray]) -> None:
    clip = pan(pictures[0], 60, 2)
    for number, image in enumerate(clip):
        clip[number] = cv2.convertScaleAbs(image, alpha=1.0 - 0.7 * number / 60)
    assert cuts(clip) == []


def test_a_dissolve_has_no_cut(pictures: list[np.ndarray]) -> None:
    first, second = pan(pictures[0], 1, 0)[0], pan(pictures[2], 1, 0)[0]
    clip = [cv2.addWeighted(first, 1 - n / 40, second, n / 40, 0) for n in range(41)]
    assert cuts(clip) == []


def test_noise_makes_no_cut(pictures: list[np.ndarray]) -> None:
    image = pan(pictures[1], 1, 0)[0]
    random = np.random.default_rng(1)
    noise = [random.normal(0, 12, image.shape) for _ in range(20)]
    assert cuts([np.clip(image + each, 0, 255).astype(np.uint8) for each in noise]) == []


def test_a_cut_back_at_once_is_a_flash(pictures: list[np.ndarray]) -> None:
    clip = pan(pictures[0], 30, 1)
    clip[20] = np.full_like(clip[20], 250)
    assert len(cuts(clip)) == 1  # not two


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (161, 90), (1000, 3)])
def test_frames_of_any_size(size: tuple[int, int]) -> None:
    dark, bright = (np.full((*size, 3), value, np.uint8) for value in (10, 240))
    assert cuts([dark] * 20 + [bright] * 20) == [20]
