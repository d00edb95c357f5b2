"""Regions of an image: boxes and masks as the response has them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from ml import transformers_pb2 as pb
from shared.errors import ResourceExhaustedError
from text_svc.worker.infer.options import NoOptions

# Which pixels belong to a region, shape (height, width).
Mask = npt.NDArray[np.bool_]
MaskFormat = Literal["png", "rle"]

MAX_OBJECTS = 1000


class DetectionOptions(NoOptions):
    """Options of pipelines that find objects.

    Attributes:
        threshold: the lowest score of an object; absent is the one that transformers uses.
        top_k: how many of the best objects to return.
    """

    threshold: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    top_k: int = Field(100, ge=1, le=MAX_OBJECTS)


class MaskOptions(NoOptions):
    """How masks are written; see `ImageMask`."""

    mask_format: MaskFormat = "png"


def corners(box: Sequence[float], width: int, height: int) -> list[float]:
    """Two corners of a box in pixels as parts of the image's sides; what is outside is cut off."""
    return [
        min(max(value / side, 0.0), 1.0)
        for value, side in zip(box, (width, height, width, height), strict=True)
    ]


class MaskWriter:
    """Writes the masks of one answer, as long as it can be sent.

    Args:
        mask_format: of the request's options.
        max_bytes: of the answer.
    """

    def __init__(self, mask_format: MaskFormat, max_bytes: int) -> None:
        self._format = mask_format
        self._max_bytes = self._left = max_bytes

    def region(self, mask: Mask, **fields: float | str) -> pb.ImageRegion:
        """A region with a mask, and the box around its pixels, if it has any.

        Args:
            mask: its pixels.
            fields: the other fields of the region.

        Raises:
            ResourceExhaustedError: the answer has grown too large to be sent.
        """
        height, width = mask.shape
        written = pb.ImageMask(width=width, height=height)
        if self._format == "png":
            written.png = _png(mask)
        else:
            runs = run_lengths(mask)
            self._check(len(runs))  # each takes a byte or more
            written.runs.extend(runs.tolist())
        region = pb.ImageRegion(points=_box_around(mask), mask=written, **fields)  # type: ignore[arg-type]
        self._check(region.ByteSize())
        self._left -= region.ByteSize()
        return region

    def _check(self, size: int) -> None:
        if size > self._left:
            raise ResourceExhaustedError(
                f"the masks of the answer have more bytes than the limit of {self._max_bytes}; "
                "send a smaller image, or ask for fewer masks or another mask_format",
                metadata={"limit": str(self._max_bytes)},
            )


def run_lengths(mask: Mask) -> npt.NDArray[np.int64]:
    """The runs of a mask, as COCO counts them: column by column, beginning with what is outside."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends = np.concatenate(([0], changes, [flat.size]))
    runs = np.diff(ends)
    return np.concatenate(([0], runs)) if flat.size and flat[0] else runs


def _png(mask: Mask) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")  # Pillow has one bit a pixel for booleans
    return file.getvalue()


def _box_around(mask: Mask) -> list[float]:
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return []
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return corners([float(value) for value in box], width, height)
