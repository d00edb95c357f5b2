"""What frames of some tasks bring along beside their picture (`EncodedFrame.extra`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT_THRESHOLD = 0.8


@dataclass(frozen=True)
class TemplateSource:
    """A template as the caller sent it; width and height count if it is packed RGB."""

    data: bytes
    width: int
    height: int


@dataclass(frozen=True)
class TemplateWish:
    """What to find in a frame: the last template and threshold that were sent until then."""

    template: TemplateSource | None = None
    threshold: float = DEFAULT_THRESHOLD


@dataclass(frozen=True)
class FrameFeatures:
    """Numbers that the caller knows of a frame, by their names."""

    values: Mapping[str, float]
