"""Planted templates are found to the pixel, with OpenCV's score; what cannot be found is told."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from shared.errors import (
    FrameSizeError,
    InputTooLargeError,
    InvalidArgumentError,
    MissingFieldError,
    OutOfRangeError,
    ServiceError,
    UndecodableImageError,
)
from vision_svc.frames.types import DecodedFrame, EncodedFrame, Limits
from vision_svc.options import Options, parse_options
from vision_svc.scenes.inputs import TemplateSource, TemplateWish
from vision_svc.scenes.templates import (
    MAX_SEARCHED_PIXELS,
    Match,
    TemplateMatcher,
    find_matches,
    fitting_scales,
    scaled_templates,
)
from vision_svc.tasks import STREAM_TASKS

PLACES = ((5, 7), (120, 33), (60, 88), (121, 91))


def texture(height: int, width: int, seed: int, blur: float = 2.0) -> np.ndarray:
    """Random blobs of colour."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    blurred = cv2.GaussianBlur(noise, (0, 0), blur).astype(np.float64)
    spread = (blurred - blurred.min()) / (blurred.max() - blurred.min()) * 255
    return spread.astype(np.uint8)


def planted(*places: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A frame of 180 x 130 with a template of 31 x 22 at these places."""
    frame, template = texture(130, 180, 1), texture(22, 31, 2)
    for x, y in places:
        frame[y : y + 22, x : x + 31] = template
    return frame, template


def found(
    frame: np.ndarray,
    template: np.ndarray,
    threshold: float = 0.8,
    scales: tuple[float, ...] = (1.0,),
    *,
    max_matches: int = 100,
    max_overlap: float = 0.3,
) -> list[Match]:
    sizes = scaled_templates(template, fitting_scales(template, scales, frame))
    return list(
        find_matches(frame, sizes, threshold, max_matches=max_matches, max_overlap=max_overlap)
    )


def test_planted_templates_are_found_to_the_pixel() -> None:
    matches = found(*planted(*PLACES))
    assert sorted((match.x, match.y) for match in matches) == sorted(PLACES)
    for match in matches:
        assert match.score == pytest.approx(1.0, abs=1e-9)
        assert (match.width, match.height, match.scale) == (31, 22, 1.0)


def test_the_score_does_not_change_with_brightness_and_contrast() -> None:
    frame, template = planted((40, 50))
    duller = (template * 0.4 + 60).astype(np.uint8)
    (match,) = found(frame, duller)
    assert (match.x, match.y) == (40, 50)
    assert match.score > 0.999


def test_scores_are_those_of_opencv() -> None:
    """Of a noisy copy: any place that OpenCV scores over the threshold is under a match."""
    frame, template = planted(*PLACES)
    noisy = cv2.add(frame, texture(130, 180, 3, blur=0.7) // 3)
    scores = cv2.matchTemplate(noisy, template, cv2.TM_CCOEFF_NORMED)
    matches = found(noisy, template, 0.5)
    for match in matches:
        assert match.score == pytest.approx(float(scores[match.y, match.x]), abs=1e-4)
    for y, x in zip(*np.nonzero(scores >= 0.5), strict=True):
        assert any(abs(match.x - x) < 31 and abs(match.y - y) < 22 for match in matches)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_the_threshold_is_kept(threshold: float) -> None:
    frame, template = planted((40, 50))
    frame[80:102, 100:131] = (template * 0.5 + texture(22, 31, 9) * 0.5).astype(np.uint8)
    matches = found(frame, template, threshold)
    assert all(match.score >= threshold - 1e-6 for match in matches)
    assert (matches[0].x, matches[0].y) == (40, 50)
    similar = [match for match in matches if (match.x, match.y) == (100, 80)]
    exact = float(cv2.matchTemplate(frame, template, cv2.TM_CCOEFF_NORMED)[80, 100])
    assert bool(similar) == (exact >= threshold)


def test_of_overlapping_matches_the_best_remains() -> None:
    frame, template = texture(130, 180, 1, blur=6.0), texture(40, 40, 2, blur=12.0)
    frame[50:90, 60:100] = template
    # It varies so little from pixel to pixel that its neighbourhood scores high, too.
    assert np.sum(cv2.matchTemplate(frame, template, cv2.TM_CCOEFF_NORMED) > 0.8) > 9
    (match,) = [m for m in found(frame, template) if abs(m.x - 60) < 20 and abs(m.y - 50) < 20]
    assert (match.x, match.y) == (60, 50)


def test_matches_may_touch_and_share_a_part() -> None:
    frame, template = planted((10, 10), (41, 10), (100, 60))
    frame[60:82, 120:151] = template  # over the last one
    assert {(m.x, m.y) for m in found(frame, template)} >= {(10, 10), (41, 10), (120, 60)}
    for one, other in itertools.combinations(found(frame, template, 0.1), 2):
        across = min(one.x, other.x) + 31 - max(one.x, other.x)
        down = min(one.y, other.y) + 22 - max(one.y, other.y)
        shared = max(0, across) * max(0, down)
        assert shared / (2 * 31 * 22 - shared) <= 0.3 + 1e-9


def test_the_number_of_matches_is_limited() -> None:
    assert len(found(*planted(*PLACES), max_matches=2)) == 2


@pytest.mark.parametrize("scale", [0.5, 1.5, 2.0])
def test_other_scales(scale: float) -> None:
    frame, template = texture(130, 180, 1), texture(20, 30, 2, blur=3)
    size = (round(30 * scale), round(20 * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    frame[40 : 40 + size[1], 60 : 60 + size[0]] = cv2.resize(template, size, interpolation=way)
    assert found(frame, template, 0.9) == []
    best = found(frame, template, 0.9, (0.5, 1.0, 1.5, 2.0))[0]
    assert (best.x, best.y, best.width, best.height) == (60, 40, *size)
    assert best.scale == scale


def test_flat_parts_of_a_frame_match_nothing() -> None:
    """Their variance is 0, and the quotient of two roundings could be anything."""
    _, template = planted()
    for grey in (0, 1, 127, 255):
        frame = np.full((300, 400, 3), grey, np.uint8)
        assert found(frame, template, 0.0) == []
        frame[::7, ::11] ^= 1  # hardly any contrast
        assert all(match.score < 0.4 for match in found(frame, template, 0.1))


def test_colours_of_the_same_brightness_differ() -> None:
    frame = np.full((90, 120, 3), 128, np.uint8)
    red, green = (200, 60, 60), (60, 131, 60)  # 103 in grey, both
    cv2.circle(frame, (30, 40), 12, red, -1)
    cv2.circle(frame, (80, 40), 12, green, -1)
    template = frame[24:57, 14:47].copy()
    (match,) = found(frame, template, 0.9)
    assert (match.x, match.y) == (14, 24)


@pytest.mark.parametrize("template", [np.full((9, 9, 3), 77, np.uint8), np.zeros((1, 1, 3), "u1")])
def test_a_flat_template_is_refused(template: np.ndarray) -> None:
    with pytest.raises(InvalidArgumentError, match="flat") as refused:
        scaled_templates(template, (1.0, 2.0))
    assert refused.value.field == "template_data"


def test_a_template_larger_than_the_frame_is_refused() -> None:
    frame, template = texture(30, 40, 1), texture(20, 41, 2)
    with pytest.raises(FrameSizeError, match="41 x 20 is larger than the frame of 40 x 30"):
        found(frame, template)
    assert found(frame, template, 0.99, (0.5, 1.0)) == []  # the smaller one fits


def test_a_template_as_large_as_the_frame() -> None:
    frame = texture(30, 40, 1)
    (match,) = found(frame, frame)
    assert (match.x, match.y, match.width, match.height) == (0, 0, 40, 30)


def test_the_work_of_a_frame_is_limited() -> None:
    frame, template = np.zeros((4320, 7680, 3), np.uint8), texture(8, 8, 1)
    with pytest.raises(InputTooLargeError, match=str(MAX_SEARCHED_PIXELS)):
        found(frame, template, 0.8, (1.0, 2.0))


def test_sizes_that_fit_into_no_frame_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template of a few kilobytes may have 33 million pixels, and 16 times as many at scale 4."""
    frame, template = planted((40, 50))
    made: list[float] = []
    real = scaled_templates

    def noted(template: np.ndarray, scales: list[float], *, gray: bool) -> object:
        made[:] = scales
        return real(template, scales, gray=gray)

    monkeypatch.setattr("vision_svc.scenes.templates.scaled_templates", noted)
    stream, wish = Stream(scales="0.5,1,4"), TemplateWish(raw(template))
    for image, scales in ((frame, [0.5, 1, 4]), (frame[:80], [0.5, 1]), (frame[:15], [0.5])):
        stream.send(image, wish)
        assert made == scales
    with pytest.raises(FrameSizeError, match="is larger than the frame"):
        stream.send(frame[:2, :2], wish)


class Stream:
    """A matcher with the frames of one stream."""

    def __init__(self, **options: str) -> None:
        self.matcher = TemplateMatcher(Limits(max_pixels=100_000))
        self.options: Options = parse_options(STREAM_TASKS["template-matching"].options, options)

    def send(self, image: np.ndarray, wish: TemplateWish) -> list[tuple[float, float]]:
        source = EncodedFrame(b"", "rgb", number=7, position=3, extra=wish)
        (answer,) = self.matcher.follow(DecodedFrame(image, source, 0.0), self.options)
        height, width = image.shape[:2]
        matches = answer.response.matches  # type: ignore[union-attr]
        return [(match.x * width, match.y * height) for match in matches]


def raw(template: np.ndarray) -> TemplateSource:
    return TemplateSource(template.tobytes(), template.shape[1], template.shape[0])


def png(template: np.ndarray) -> TemplateSource:
    return TemplateSource(cv2.imencode(".png", template[..., ::-1])[1].tobytes(), 0, 0)


@pytest.mark.parametrize("source", [raw, png])
@pytest.mark.parametrize("match_on", ["rgb", "gray"])
def test_answers_are_normalised(source: object, match_on: str) -> None:
    frame, template = planted((40, 50))
    wish = TemplateWish(source(template))  # type: ignore[operator]
    ((x, y),) = Stream(match_on=match_on).send(frame, wish)
    assert (x, y) == pytest.approx((40, 50), abs=1e-4)


def test_a_template_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, template = planted((40, 50))
    decoded = []
    real = scaled_templates

    def counted(*args: object, **kwargs: object) -> object:
        decoded.append(1)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("vision_svc.scenes.templates.scaled_templates", counted)
    stream, first, other = Stream(), TemplateWish(raw(template)), TemplateWish(raw(frame[:20, :25]))
    for _ in range(3):
        assert len(stream.send(frame, first)) == 1
    assert len(decoded) == 1
    assert stream.send(frame, other) == [(0, 0)]
    assert len(decoded) == 2


@pytest.mark.parametrize(
    ("wish", "error", "field"),
    [
        (TemplateWish(), MissingFieldError, "template_data"),
        (TemplateWish(TemplateSource(b"1234", 0, 0)), UndecodableImageError, "template_data"),
        (TemplateWish(TemplateSource(b"1234", 3, 3)), FrameSizeError, "template_data"),
        (TemplateWish(TemplateSource(b"1" * 27, 3, 3)), InvalidArgumentError, "template_data"),
        (TemplateWish(TemplateSource(b"1" * 27, -3, -3)), FrameSizeError, "template_data"),
        (TemplateWish(TemplateSource(b"\xff\xd8\xff", 0, 0)), UndecodableImageError, None),
        (TemplateWish(TemplateSource(b"a" * 300_300, 1001, 100)), InputTooLargeError, None),
        *(
            (TemplateWish(raw(planted()[1]), threshold), OutOfRangeError, "threshold")
            for threshold in (-0.1, 1.1, float("nan"), float("inf"))
        ),
    ],
)
def test_what_is_refused_names_field_and_frame(
    wish: TemplateWish, error: type[ServiceError], field: str | None
) -> None:
    with pytest.raises(error) as refused:
        Stream().send(planted()[0], wish)
    assert refused.value.message.startswith("frame 3 of the stream (frame_number 7): ")
    assert field is None or refused.value.field == field
