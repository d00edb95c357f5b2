"""Template matching: normalised cross-correlation, and of matches that overlap the best one.

The score is OpenCV's TM_CCOEFF_NORMED: the correlation of template and window after the mean of
each channel is subtracted from both, from -1 to 1. It does not change with brightness or contrast.
OpenCV computes it in 32-bit floats over the whole frame, which is off by some hundredths where a
window has little contrast; so a match's own score is computed again, exactly.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ml import mediapipe_pb2 as pb
from shared.errors import (
    FrameSizeError,
    InputTooLargeError,
    InvalidArgumentError,
    MissingFieldError,
    OutOfRangeError,
)
from vision_svc import metrics
from vision_svc.detector import Answer, skipped
from vision_svc.frames.decoder import decode_picture
from vision_svc.frames.headers import told_format
from vision_svc.frames.types import EncodedFrame, Limits, as_rgb, frame_context
from vision_svc.options import numbers
from vision_svc.scenes import TEMPLATE_MATCHING
from vision_svc.scenes.inputs import TemplateSource, TemplateWish

if TYPE_CHECKING:
    import numpy.typing as npt

    from vision_svc.frames.types import DecodedFrame, Rgb, SkippedFrame
    from vision_svc.options import Options

# Pixels of a frame times the number of scales; this many take about 2 s in a thread.
MAX_SEARCHED_PIXELS = 33_177_600
# Standard deviation, in grey levels, below which a template has nothing that could be found.
MIN_CONTRAST = 0.5
# How far OpenCV's scores may be off.
_SLACK = 0.05
# Equal pictures have a score of 1, but for the last digits.
_ROUNDING = 1e-6
# The best places of a frame that are looked at; far more than there are matches.
_MAX_PEAKS = 4096
# The places whose score is by OpenCV too low, of which an exact one is computed all the same.
_MAX_DOUBTFUL = 64


@dataclass(frozen=True)
class _Scaled:
    """A template in one of its sizes.

    Attributes:
        scale: its size in parts of the original's.
        image: height x width x channels.
        centred: its values less each channel's mean, for exact scores.
        norm: the root of the sum of their squares.
    """

    scale: float
    image: Rgb
    centred: npt.NDArray[np.float64]
    norm: float


@dataclass(frozen=True)
class Match:
    """A place in a frame, in pixels."""

    x: int
    y: int
    width: int
    height: int
    score: float
    scale: float


class TemplateMatcher:
    """Finds a template in the frames of one stream.

    Args:
        limits: how large a template may be.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._source: TemplateSource | None = None
        self._template: Rgb | None = None
        self._frame_shape: tuple[int, ...] = ()
        self._sizes: Sequence[_Scaled] = ()
        self._metrics = metrics.of_task(TEMPLATE_MATCHING)

    def follow(self, frame: DecodedFrame, options: Options) -> Sequence[Answer]:
        start = time.perf_counter()
        wish = frame.source.extra
        assert isinstance(wish, TemplateWish), "the servicer adds it"
        with frame_context(frame.source):
            matches = self._matches(frame.image, wish, options)
        height, width = frame.image.shape[:2]
        response = pb.TemplateMatchingResponse(
            matches=[
                pb.TemplateMatch(
                    x=match.x / width,
                    y=match.y / height,
                    width=match.width / width,
                    height=match.height / height,
                    confidence=match.score,
                    scale=match.scale,
                )
                for match in matches
            ]
        )
        seconds = time.perf_counter() - start
        self._metrics.inference_seconds.observe(seconds)
        return [Answer(response, frame, seconds)]

    def skip(self, frame: SkippedFrame) -> Sequence[Answer]:
        return [skipped(pb.TemplateMatchingResponse(), frame)]

    def finish(self, options: Options) -> Sequence[Answer]:
        del options
        return []

    def close(self) -> None:
        """Nothing is kept beyond the stream."""

    def _matches(self, image: Rgb, wish: TemplateWish, options: Options) -> Sequence[Match]:
        if wish.template is None:
            raise MissingFieldError(
                "template_data is empty, and no earlier frame had a template",
                field="template_data",
            )
        if not 0.0 <= wish.threshold <= 1.0:  # false for NaN
            raise OutOfRangeError(
                f"threshold must be a number from 0 to 1, not {wish.threshold:g}",
                field="threshold",
            )
        gray = options["match_on"] == "gray"
        scales = numbers(str(options["scales"]))
        if wish.template is not self._source or self._template is None:
            self._template, self._frame_shape = decode_template(wish.template, self._limits), ()
            self._source = wish.template
        if image.shape != self._frame_shape:
            self._sizes = ()  # free before the new ones are made
            fitting = fitting_scales(self._template, scales, image)
            self._sizes = scaled_templates(self._template, fitting, gray=gray)
            self._frame_shape = image.shape
        return find_matches(
            _channels(image, gray=gray),
            self._sizes,
            wish.threshold,
            max_matches=int(options["max_matches"]),
            max_overlap=float(options["max_overlap"]),
        )


def decode_template(source: TemplateSource, limits: Limits) -> Rgb:
    """The pixels of a template.

    Raises:
        FrameSizeError: it is packed RGB of another size.
        UndecodableImageError: it is neither that nor a picture.
        InputTooLargeError: it exceeds a limit.
    """
    name = told_format(source.data, source.width, source.height, what="template")
    encoded = EncodedFrame(
        source.data, name, source.width, source.height, data_field="template_data"
    )
    return decode_picture(encoded, limits).image


def fitting_scales(template: Rgb, scales: Sequence[float], image: Rgb) -> Sequence[float]:
    """The scales at which a template is no larger than a picture.

    Raises:
        FrameSizeError: there is none.
        InputTooLargeError: picture and sizes exceed `MAX_SEARCHED_PIXELS`.
    """
    height, width = image.shape[:2]
    sizes = {scale: _scaled_size(template, scale) for scale in scales}
    fitting = [scale for scale, (w, h) in sizes.items() if w <= width and h <= height]
    if not fitting:
        least = sizes[min(scales)]
        raise FrameSizeError(
            f"a template of {least[0]} x {least[1]} is larger than the frame of {width} x {height}",
            field="template_data",
        )
    if (searched := width * height * len(fitting)) > MAX_SEARCHED_PIXELS:
        raise InputTooLargeError(
            f"{len(fitting)} scales on a frame of {width} x {height} are {searched} pixels, which "
            f"exceeds the limit of {MAX_SEARCHED_PIXELS}",
            metadata={"max_searched_pixels": str(MAX_SEARCHED_PIXELS)},
        )
    return fitting


def _scaled_size(template: Rgb, scale: float) -> tuple[int, int]:
    """Width and height."""
    height, width = (max(1, round(side * scale)) for side in template.shape[:2])
    return width, height


def scaled_templates(
    template: Rgb, scales: Sequence[float], *, gray: bool = False
) -> Sequence[_Scaled]:
    """The template in all sizes in which there is something to find.

    Raises:
        InvalidArgumentError: the template is flat.
    """
    found = []
    for scale in scales:
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        resized = (
            template
            if scale == 1
            else cv2.resize(template, _scaled_size(template, scale), interpolation=way)
        )
        image = _channels(as_rgb(resized), gray=gray)
        centred = _centred(image)
        norm = float(np.sqrt(np.sum(centred * centred)))
        if norm >= MIN_CONTRAST * np.sqrt(centred.size):
            found.append(_Scaled(scale, image, centred, norm))
    if not found:
        raise InvalidArgumentError(
            "the template is flat: all its pixels have nearly the same colour, so it would match "
            "anything or nothing",
            field="template_data",
        )
    return found


def find_matches(
    image: Rgb,
    templates: Sequence[_Scaled],
    threshold: float,
    *,
    max_matches: int,
    max_overlap: float,
) -> Sequence[Match]:
    """The places of a picture that look like a template, best first.

    Args:
        image: with as many channels as the templates.
        templates: one template in several sizes, none larger than the picture.
        threshold: the lowest score.
        max_matches: the number of matches, at most.
        max_overlap: the largest part, intersection over union, that two matches may share.
    """
    accepted: list[Match] = []
    boxes = np.empty((max_matches, 4))
    doubtful = 0
    for candidate, template in _peaks(image, templates, threshold - _SLACK):
        doubtful += candidate.score < threshold
        if len(accepted) == max_matches or doubtful > _MAX_DOUBTFUL:
            break
        box = np.array(
            (
                candidate.x,
                candidate.y,
                candidate.x + candidate.width,
                candidate.y + candidate.height,
            )
        )
        if _most_shared(box, boxes[: len(accepted)]) > max_overlap:
            continue
        score = _exact_score(image, candidate, template)
        if score >= threshold - _ROUNDING:
            boxes[len(accepted)] = box
            accepted.append(
                Match(
                    *(candidate.x, candidate.y, candidate.width, candidate.height),
                    score=score,
                    scale=candidate.scale,
                )
            )
    return sorted(accepted, key=lambda match: -match.score)


def _peaks(
    image: Rgb, templates: Sequence[_Scaled], threshold: float
) -> Iterator[tuple[Match, _Scaled]]:
    """The local maxima of the scores in all sizes, best first."""
    found: list[tuple[float, int, int, _Scaled]] = []
    for template in templates:
        scores = cv2.matchTemplate(image, template.image, cv2.TM_CCOEFF_NORMED)
        ys, xs = np.nonzero((scores >= threshold) & (scores >= cv2.dilate(scores, _AROUND)))
        values = scores[ys, xs]
        if len(values) > _MAX_PEAKS:
            best = np.argpartition(-values, _MAX_PEAKS)[:_MAX_PEAKS]
            ys, xs, values = ys[best], xs[best], values[best]
        found += [
            (float(value), int(x), int(y), template)
            for value, x, y in zip(values, xs, ys, strict=True)
        ]
    found.sort(key=lambda peak: -peak[0])
    for score, x, y, template in found[:_MAX_PEAKS]:
        height, width = template.image.shape[:2]
        yield Match(x, y, width, height, score, template.scale), template


_AROUND = np.ones((3, 3), np.uint8)


def _exact_score(image: Rgb, match: Match, template: _Scaled) -> float:
    window = _centred(image[match.y : match.y + match.height, match.x : match.x + match.width])
    norm = float(np.sqrt(np.sum(window * window)))
    if norm == 0.0:
        return -1.0  # a flat window is like nothing
    return min(1.0, float(np.sum(window * template.centred)) / (norm * template.norm))


def _most_shared(box: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> float:
    """The largest intersection over union of a box with one of the others (left, top, ...)."""
    if not len(others):
        return 0.0
    overlap = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.prod(np.clip(overlap, 0, None), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    return float(np.max(shared / (areas - shared)))


def _centred(image: Rgb) -> npt.NDArray[np.float64]:
    values = image.astype(np.float64)
    centred: npt.NDArray[np.float64] = values - values.mean(axis=(0, 1))
    return centred


def _channels(image: Rgb, *, gray: bool) -> Rgb:
    """The picture as height x width x channels: three, or one."""
    if not gray:
        return image
    return as_rgb(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., np.newaxis])
