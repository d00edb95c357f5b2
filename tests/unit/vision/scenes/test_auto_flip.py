"""The crop holds its subject, moves without jerks, jumps at cuts alone, and is cut out exactly."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from ml import mediapipe_pb2 as pb
from shared.errors import FrameSizeError, InputTooLargeError
from tests.support.vision_frames import encode_still
from tests.unit.vision.scenes.fakes import marked_subjects
from vision_svc.detector import Answer
from vision_svc.frames.decoder import decode_picture
from vision_svc.frames.raw import RAW_FORMATS
from vision_svc.frames.types import DecodedFrame, EncodedFrame, Limits, SkippedFrame, SkipReason
from vision_svc.options import parse_options
from vision_svc.scenes.auto_flip import AutoFlip, crop_size
from vision_svc.tasks import STREAM_TASKS

WIDTH, HEIGHT = 640, 360
CROP = 202  # of 640 x 360 to 9:16, even
FACE = 40
Box = tuple[float, float, float, float]  # left, top, width, height


MakeFlip = Callable[..., AutoFlip]


@pytest.fixture
def flip(tmp_path: Path) -> MakeFlip:
    def make(noise: float = 0.0) -> AutoFlip:
        return AutoFlip(*marked_subjects(tmp_path, noise))

    return make


def frame_with(*middles: float, background: int = 60, face: int = FACE) -> np.ndarray:
    """A frame with faces whose middles are at these columns."""
    image = np.full((HEIGHT, WIDTH, 3), background, np.uint8)
    for middle in middles:
        left = round(middle - face / 2)
        image[100:180, max(0, left) : left + face] = (200, 150, 120)
        image[0, [max(0, left), min(WIDTH - 1, left + face)], 0] = 255
    return image


def run(
    flip: AutoFlip, images: Sequence[np.ndarray], name: str = "rgb", fps: int = 30, **options: str
) -> list[Answer]:
    known = STREAM_TASKS["auto-flip"].options
    chosen = parse_options(known, options)
    answers: list[Answer] = []
    for number, image in enumerate(images):
        data, pixels = encode_still(image, name)
        # Marks do not live through the loss of a raw format, whose bytes are cropped in any case.
        pixels = image if name in RAW_FORMATS else pixels
        height, width = image.shape[:2]
        source = EncodedFrame(data, name, width, height, number * 1000 // fps, number, number + 1)
        answers += flip.follow(DecodedFrame(pixels, source, 0.0), chosen)
        assert len(answers) >= max(0, number + 1 - int(chosen["look_ahead"]))
        if image.shape == images[0].shape:
            assert len(answers) == max(0, number + 1 - int(chosen["look_ahead"]))
    answers += flip.finish(chosen)
    assert [answer.frame.source.number for answer in answers if answer.frame] == [
        *range(len(images))
    ]
    return answers


def lefts(answers: Sequence[Answer]) -> np.ndarray:
    return np.array([int(answer.response.metadata["crop_x"]) for answer in answers])  # type: ignore[union-attr]


def walk(frames: int = 150, fps: int = 30) -> np.ndarray:
    """Stands for a second, walks to the right and stops, walks back faster: columns of a middle."""
    times = np.arange(frames) / fps
    right = np.clip((times - 1) * 180, 0, 380)  # 0.9 crops a second
    back = np.clip((times - 3.5) * 300, 0, 300)
    return 120 + right - back


@pytest.mark.parametrize("look_ahead", ["0", "10"])
@pytest.mark.parametrize("noise", [0.0, 3.0])
@pytest.mark.parametrize("fps", [15, 30, 60])
def test_a_subject_that_walks_stays_in_the_crop(
    flip: MakeFlip, look_ahead: str, noise: float, fps: int
) -> None:
    middles = walk(5 * fps, fps)
    images = [frame_with(middle) for middle in middles]
    crops = lefts(run(flip(noise), images, fps=fps, look_ahead=look_ahead))
    assert np.all(middles - FACE / 2 >= crops)
    assert np.all(middles + FACE / 2 <= crops + CROP)
    assert crops.min() >= 0
    assert crops.max() <= WIDTH - CROP


@pytest.mark.parametrize("look_ahead", ["0", "10"])
def test_the_camera_does_not_tremble(flip: MakeFlip, look_ahead: str) -> None:
    """Detections that tremble by some pixels do not move a camera whose subject stands still."""
    images = [frame_with(300 + 4 * np.sin(n)) for n in range(90)]
    crops = lefts(run(flip(noise=3.0), images, look_ahead=look_ahead))
    assert np.ptp(crops) == 0


@pytest.mark.parametrize("look_ahead", ["0", "10"])
def test_the_camera_moves_without_jerks(flip: MakeFlip, look_ahead: str) -> None:
    middles = walk()
    crops = lefts(run(flip(noise=2.0), [frame_with(m) for m in middles], look_ahead=look_ahead))
    steps = np.diff(crops)
    # The subject's own steps are 6 and 10 pixels, and change at once; those of the camera do not.
    assert np.abs(steps).max() <= 16
    assert np.abs(np.diff(steps)).max() <= 8
    assert np.abs(np.diff(steps)).mean() <= 0.8
    # Of all motion, little is to and fro.
    assert np.abs(steps).sum() <= 1.25 * (380 + 300)
    standing = crops[10:25]
    assert np.ptp(standing) == 0


def test_looking_ahead_the_camera_begins_before_its_subject(flip: MakeFlip) -> None:
    images = [frame_with(m) for m in walk()]

    def begins(look_ahead: str) -> int:
        crops = lefts(run(flip(), images, look_ahead=look_ahead))
        return int(np.flatnonzero(crops != crops[0])[0])

    assert begins("10") <= begins("0") - 4


@pytest.mark.parametrize("look_ahead", ["0", "8"])
def test_the_camera_jumps_at_cuts(flip: MakeFlip, look_ahead: str) -> None:
    images = [
        *(frame_with(120, background=40) for _ in range(30)),
        *(frame_with(520, background=200) for _ in range(30)),
    ]
    answers = run(flip(), images, look_ahead=look_ahead)
    assert lefts(answers).tolist() == [19] * 30 + [419] * 30
    shots = [answer.response.metadata["shot"] for answer in answers]  # type: ignore[union-attr]
    assert shots == ["0"] * 30 + ["1"] * 30


def test_a_still_camera_moves_at_cuts_alone(flip: MakeFlip) -> None:
    images = [
        *(frame_with(m, background=40) for m in np.linspace(150, 300, 40)),
        *(frame_with(m, background=200) for m in np.linspace(400, 500, 40)),
    ]
    crops = lefts(run(flip(noise=1.0), images, camera="still", look_ahead="20"))
    assert [np.ptp(crops[:40]), np.ptp(crops[40:])] == [0, 0]
    # Each is in the middle of where the subject goes in the frames ahead.
    middle = np.linspace(150, 300, 40)[:21].mean()
    assert crops[0] + CROP / 2 == pytest.approx(middle, abs=8)
    assert crops[40] > crops[39] + 50


def test_without_a_subject_the_crop_is_in_the_middle_and_stays(flip: MakeFlip) -> None:
    assert set(lefts(run(flip(), [frame_with()] * 10))) == {(WIDTH - CROP) // 2}
    images = [frame_with(520)] * 10 + [frame_with()] * 60
    assert set(lefts(run(flip(), images))) == {419}


def test_two_people_who_fit_are_both_in_the_crop(flip: MakeFlip) -> None:
    (first, *_) = lefts(run(flip(), [frame_with(300, 400)] * 3))
    assert first <= 280
    assert first + CROP >= 420


def test_of_two_who_do_not_fit_the_camera_keeps_one(flip: MakeFlip) -> None:
    """The other one being a little larger in some frames does not make it change sides."""
    images = []
    for number in range(60):
        image = frame_with(100, face=40)
        other = frame_with(520, face=40 + 6 * (number % 5 == 4))
        image[:, 320:] = other[:, 320:]
        images.append(image)
    assert np.ptp(lefts(run(flip(), images))) == 0


@pytest.mark.parametrize(
    ("frame", "aspect", "crop"),
    [
        ((640, 480), "9:16", (270, 480)),
        ((1920, 1080), "9:16", (606, 1080)),
        ((1080, 1920), "16:9", (1080, 606)),
        ((640, 480), "4:3", (640, 480)),
        ((641, 481), "4:3", (640, 480)),
        ((640, 480), "1:1", (480, 480)),
        ((640, 480), "1:100", (4, 480)),
        ((2, 2), "100:1", (2, 2)),
        ((3, 1000), "1:1", (2, 2)),
    ],
)
def test_sizes_of_crops(frame: tuple[int, int], aspect: str, crop: tuple[int, int]) -> None:
    assert crop_size(*frame, aspect) == crop


def test_a_frame_of_one_pixel_is_refused() -> None:
    with pytest.raises(FrameSizeError, match="at least 2 x 2"):
        crop_size(1, 100, "9:16")


@pytest.mark.parametrize("name", ["rgb", "bgr", "rgba", "bgra", "gray", "yuv420", "nv12"])
@pytest.mark.parametrize("aspect", ["9:16", "3:1"])
def test_uncompressed_frames_keep_their_pixels(flip: MakeFlip, name: str, aspect: str) -> None:
    rng = np.random.default_rng(3)
    small = rng.integers(0, 250, (20, 34, 3), dtype=np.uint8)
    image = cv2.resize(small, (340, 200), interpolation=cv2.INTER_CUBIC)
    image[0, :, 0] = 0
    image[0, [250, 281], 0] = 255
    (answer,) = run(flip(), [image], name, aspect=aspect)
    out = answer.response
    assert isinstance(out, pb.VideoFrame)
    assert out.format == name
    box = {key: int(out.metadata[f"crop_{key}"]) for key in ("x", "y", "width", "height")}
    assert (out.width, out.height) == (box["width"], box["height"])
    limits = Limits()
    cropped = decode_picture(EncodedFrame(out.frame_data, name, out.width, out.height), limits)
    whole = decode_picture(EncodedFrame(encode_still(image, name)[0], name, 340, 200), limits)
    rows = slice(box["y"], box["y"] + box["height"])
    columns = slice(box["x"], box["x"] + box["width"])
    assert np.array_equal(cropped.image, whole.image[rows, columns])
    if name in ("yuv420", "nv12"):
        assert all(value % 2 == 0 for value in box.values())


@pytest.mark.parametrize(
    ("name", "output", "expected"),
    [
        *(("jpeg", "same", "jpeg"), ("png", "same", "png"), ("webp", "same", "webp")),
        *(("png", "jpeg", "jpeg"), ("nv12", "jpeg", "jpeg"), ("gray", "jpeg", "jpeg")),
    ],
)
def test_compressed_frames(flip: MakeFlip, name: str, output: str, expected: str) -> None:
    image = frame_with(500)
    (answer,) = run(flip(), [image], name, output_format=output)
    out = answer.response
    assert isinstance(out, pb.VideoFrame)
    assert out.format == expected
    left = int(out.metadata["crop_x"])
    decoded = decode_picture(EncodedFrame(out.frame_data, expected), Limits()).image
    assert decoded.shape == (HEIGHT, CROP, 3)
    _, sent = encode_still(image, name)
    sent = image if name in RAW_FORMATS else sent
    error = np.abs(decoded.astype(int) - sent[:, left : left + CROP]).mean()
    assert error < (0.01 if expected != "jpeg" and name == expected else 3)


def test_frames_of_another_size_begin_a_new_shot(flip: MakeFlip) -> None:
    images = [frame_with(120)] * 5 + [frame_with(500)[:, ::2].copy()] * 5
    answers = run(flip(), images, look_ahead="4")
    sizes = [(a.response.width, a.response.height) for a in answers]  # type: ignore[union-attr]
    assert sizes == [(CROP, HEIGHT)] * 10  # of 320 x 360 it is as large
    assert [a.response.metadata["shot"] for a in answers] == ["0"] * 5 + ["1"] * 5  # type: ignore[union-attr]
    assert all(int(a.response.metadata["crop_x"]) <= 320 - CROP for a in answers[5:])  # type: ignore[union-attr]


def test_frames_that_wait_are_limited(flip: MakeFlip) -> None:
    image = np.zeros((2160, 3840, 3), np.uint8)
    with pytest.raises(InputTooLargeError, match="look_ahead 5 of frames of 3840 x 2160"):
        run(flip(), [image], look_ahead="5")


def test_skipped_frames_are_answered_in_their_place(flip: MakeFlip) -> None:
    """They wait behind the frames before them, and hold up none of those."""
    work = flip()
    options = parse_options(STREAM_TASKS["auto-flip"].options, {"look_ahead": "2"})
    image = frame_with(300)
    answers: list[Answer] = []
    for number in range(8):
        source = EncodedFrame(image.tobytes(), "rgb", WIDTH, HEIGHT, number=number)
        if number in (0, 3, 4, 7):
            answers += work.skip(SkippedFrame(source, SkipReason.LOST))
        else:
            answers += work.follow(DecodedFrame(image, source, 0.0), options)
    answers += work.finish(options)
    assert [answer.frame.source.number for answer in answers if answer.frame] == [*range(8)]
    skips = [answer.response.skipped for answer in answers]  # type: ignore[union-attr]
    assert [number for number, skip in enumerate(skips) if skip] == [0, 3, 4, 7]
    assert all(bool(a.response.frame_data) == (not a.response.skipped) for a in answers)  # type: ignore[union-attr]


def test_skipped_frames_without_end_do_not_pile_up(flip: MakeFlip) -> None:
    work = flip()
    options = parse_options(STREAM_TASKS["auto-flip"].options, {"look_ahead": "2"})
    image = frame_with(300)
    source = EncodedFrame(image.tobytes(), "rgb", WIDTH, HEIGHT)
    assert not work.follow(DecodedFrame(image, source, 0.0), options)
    source = EncodedFrame(b"1" * 1000, "h264")
    counts = [len(work.skip(SkippedFrame(source, SkipReason.LOST))) for _ in range(5)]
    assert counts == [0, 3, 1, 1, 1]


def test_bytes_of_frames_that_wait_are_kept_only_where_they_are_cut_out(flip: MakeFlip) -> None:
    work = flip()
    options = parse_options(STREAM_TASKS["auto-flip"].options, {"look_ahead": "2"})
    image = frame_with(300)
    padded = encode_still(image, "jpeg")[0] + bytes(1 << 20)
    kept = weakref.ref(frame := EncodedFrame(memoryview(padded), "jpeg"))
    assert not work.follow(DecodedFrame(image, frame, 0.0), options)
    del frame
    assert kept() is None
    (answer,) = work.finish(options)
    assert answer.response.format == "jpeg"  # type: ignore[union-attr]


def test_a_frame_that_is_refused_takes_no_answers_with_it(flip: MakeFlip) -> None:
    work = flip()
    options = parse_options(STREAM_TASKS["auto-flip"].options, {"look_ahead": "5"})
    image = frame_with(300)
    for number in range(3):
        source = EncodedFrame(image.tobytes(), "rgb", WIDTH, HEIGHT, number=number)
        assert not work.follow(DecodedFrame(image, source, 0.0), options)
    with pytest.raises(FrameSizeError, match="at least 2 x 2"):
        work.follow(DecodedFrame(image[:1], EncodedFrame(b"", "rgb"), 0.0), options)
    answers = work.finish(options)
    assert [answer.frame.source.number for answer in answers if answer.frame] == [0, 1, 2]
