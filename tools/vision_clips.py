"""Pictures and clips for the vision demo, its tests and its benchmark.

They are made from the pictures that `make models` fetches and from a drawn hand; nothing else is
needed. If the optional folder of test data is beside the checkout, its files are used too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av
import cv2
import numpy as np

from tools.models import REPOSITORY, model_dir

if TYPE_CHECKING:
    from vision_svc.frames.types import Rgb

# Optional: pictures and one clip from the MediaPipe repository.
TEST_DATA = REPOSITORY.parent / "shared" / "testdata"
PERSON_CLIP = TEST_DATA / "pose_world_landmarks.mp4"
WIDTH, HEIGHT = 640, 480

_SKIN = (224, 172, 140)
_SHADE = (184, 141, 115)
_WALL = (200, 205, 210)
# Base and tip of each finger and its widths there, relative to the middle of the palm.
_FINGERS = (
    ((-42, -20), (-62, -125), (15, 11)),
    ((-14, -30), (-18, -155), (16, 12)),
    ((15, -30), (24, -148), (16, 12)),
    ((42, -20), (62, -110), (14, 10)),
    ((-45, 60), (-115, -15), (18, 12)),
)
_PALM = ((-52, -20), (52, -25), (58, 40), (38, 100), (-38, 100), (-56, 40))
_LINES = (((-40, 10), (30, -2)), ((-38, 25), (38, 20)), ((-30, 30), (-20, 90)))


def read_picture(path: Path) -> Rgb:
    """A picture file as RGB.

    Raises:
        FileNotFoundError: the file is missing or is not a picture.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) if path.is_file() else None
    if image is None:
        raise FileNotFoundError(f"no picture at {path}")
    return cast("Rgb", image)


def astronaut() -> Rgb:
    """One person, face and shoulders, 512 x 512."""
    return read_picture(model_dir() / "pictures" / "astronaut.png")


def cat() -> Rgb:
    """A cat's head, 451 x 300."""
    return read_picture(model_dir() / "pictures" / "chelsea.png")


def coffee() -> Rgb:
    """A cup of coffee on a table, 600 x 400."""
    return read_picture(model_dir() / "pictures" / "coffee.png")


def moving(picture: Rgb, frames: int, width: int = WIDTH, height: int = HEIGHT) -> Iterator[Rgb]:
    """A camera that pans and zooms over a picture, with a period of 60 frames."""
    rows, columns = picture.shape[:2]
    for number in range(frames):
        phase = 2 * math.pi * number / 60
        scale = min(width / columns, height / rows) * (1.15 + 0.15 * math.sin(phase))
        x = width / 2 + 0.06 * width * math.sin(phase + 1.0)
        y = height / 2 + 0.04 * height * math.cos(phase)
        turn = cv2.getRotationMatrix2D((columns / 2, rows / 2), 6 * math.sin(phase), scale)
        shift = np.array([[0, 0, x - columns / 2], [0, 0, y - rows / 2]])
        frame = cv2.warpAffine(
            picture, turn + shift, (width, height), borderMode=cv2.BORDER_REPLICATE
        )
        yield cast("Rgb", frame)


def crossing(frames: int) -> Iterator[Rgb]:
    """The picture of a cat passes above that of a cup, and back, in 120 frames."""
    cards = [cv2.resize(coffee(), (300, 200)), cv2.resize(cat(), (300, 200))]
    for number in range(frames):
        image = np.full((HEIGHT, WIDTH, 3), _WALL, np.uint8)
        phase = math.cos(2 * math.pi * number / 120)
        for card, side, top in zip(cards, (1, -1), (220, 40), strict=True):
            left = round((WIDTH - 300) / 2 + side * phase * (WIDTH - 300) / 2)
            image[top : top + 200, left : left + 300] = card
        yield cast("Rgb", image)


class _Hand:
    """An open left hand, palm to the viewer; `mirrored`, a right one."""

    def __init__(self, image: Any, x: float, y: float, scale: float, mirrored: bool) -> None:
        self._image, self._x, self._y, self._scale = image, x, y, scale
        self._side = -1 if mirrored else 1

    def draw(self) -> None:
        self._limb((0, 180), (0, 95), (38, 40), _SKIN)
        palm = np.array([self._at(*point) for point in _PALM])
        cv2.fillConvexPoly(self._image, palm, _SKIN, cv2.LINE_AA)
        for corner in ((-40, -15), (40, -18), (40, 80), (-35, 80)):
            self._disc(*corner, 20, _SKIN)
        for base, tip, (wide, narrow) in _FINGERS:
            self._limb(base, tip, (wide + 2, narrow + 2), _SHADE)
            self._limb(base, tip, (wide, narrow), _SKIN)
        for start, end in _LINES:
            cv2.line(self._image, self._at(*start), self._at(*end), _SHADE, 2, cv2.LINE_AA)

    def _at(self, x: float, y: float) -> tuple[int, int]:
        return int(self._x + self._side * x * self._scale), int(self._y + y * self._scale)

    def _disc(self, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
        centre, size = self._at(x, y), int(radius * self._scale)
        cv2.circle(self._image, centre, size, colour, -1, cv2.LINE_AA)

    def _limb(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        widths: tuple[float, float],
        colour: tuple[int, int, int],
    ) -> None:
        for t in np.linspace(0, 1, 40):
            x, y = (a + (b - a) * t for a, b in zip(start, end, strict=True))
            self._disc(x, y, widths[0] + (widths[1] - widths[0]) * t, colour)


def drawn_hand(
    x: float = 320, y: float = 300, scale: float = 0.7, *, mirrored: bool = False
) -> Rgb:
    """A drawing that MediaPipe recognises as an open palm: a left hand, or mirrored a right one."""
    image = np.full((HEIGHT, WIDTH, 3), _WALL, np.uint8)
    _Hand(image, x, y, scale, mirrored).draw()
    return cast("Rgb", cv2.GaussianBlur(image, (5, 5), 0))


def moving_hand(frames: int, *, mirrored: bool = False) -> Iterator[Rgb]:
    """The drawn hand, moving a little."""
    for number in range(frames):
        phase = 2 * math.pi * number / 60
        yield drawn_hand(320 + 20 * math.sin(phase), 300 + 8 * math.cos(phase), mirrored=mirrored)


def video_frames(path: Path, frames: int, every: int = 1) -> Iterator[Rgb]:
    """The first `frames` frames of a video file, or of every `every`-th frame of it."""
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number >= frames * every:
                return
            if number % every == 0:
                yield cast("Rgb", frame.to_ndarray(format="rgb24"))
