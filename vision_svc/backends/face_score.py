"""How sure the face detector is of a face whose mesh is known.

MediaPipe's face landmarker and holistic landmarker find out whether a face is there but answer with
points alone. So the detector that comes in their own bundle looks once more at an upright crop of
the face, and its best score is the confidence. That takes more than 1 ms of a core, as much as a
sixth of the mesh; so while a face stays where it is, the detector looks at every fourth frame.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter

if TYPE_CHECKING:
    import numpy.typing as npt

    from vision_svc.backends.landmarks import Points
    from vision_svc.frames.types import Rgb

_BUNDLE_MEMBER = "face_detector.tflite"
# Points of the mesh: outer corners of the right and left eye; then top of the forehead, chin and
# the cheeks at the ears, which are the edges of an upright face.
_USED = [33, 263, 10, 152, 234, 454]
# Side of the crop in sizes of the face: BlazeFace wants some room around it.
_CROP_SCALE = 2.0
# Scores are clipped before the sigmoid as the detector's own graph does
# (mediapipe/modules/face_detection, score_clipping_thresh).
_CLIP = 100.0
# Frames for which a score counts, the first included, while the face stays in place.
LOOK_EVERY = 4
# How far it may be from where it was then: the same crop would still show it whole and upright.
_MOVED = 0.2  # of its size
_GROWN = 1.25
_TURNED = 15.0  # degrees


@dataclass(frozen=True)
class _Place:
    """Where a face is: centre and size in pixels, and how far it leans, in degrees."""

    x: float
    y: float
    size: float
    angle: float

    @classmethod
    def of(cls, face: Points, width: int, height: int) -> _Place:
        xs, ys = (face[axis][_USED].tolist() for axis in ("x", "y"))
        left, right, top, bottom = min(xs[2:]), max(xs[2:]), min(ys[2:]), max(ys[2:])
        across = (xs[1] - xs[0]) * width
        down = (ys[1] - ys[0]) * height
        return cls(
            (left + right) / 2 * width,
            (top + bottom) / 2 * height,
            max(1.0, (right - left) * width, (bottom - top) * height),
            math.degrees(math.atan2(down, across)),
        )

    def near(self, other: _Place) -> bool:
        """Whether a crop made for the one serves for the other."""
        grown = max(self.size, other.size) / min(self.size, other.size)
        turned = abs((self.angle - other.angle + 180) % 360 - 180)
        moved = math.hypot(self.x - other.x, self.y - other.y) / self.size
        return moved <= _MOVED and grown <= _GROWN and turned <= _TURNED

    def to_crop(self, side: int) -> npt.NDArray[np.float64]:
        """The affine map (2 x 3) that brings the face upright into the middle of a square."""
        scale = side / (_CROP_SCALE * self.size)
        turn = cv2.getRotationMatrix2D((self.x, self.y), self.angle, scale)
        shift = [[0.0, 0.0, side / 2 - self.x], [0.0, 0.0, side / 2 - self.y]]
        matrix: npt.NDArray[np.float64] = np.asarray(turn, np.float64) + np.array(shift)
        return matrix


@dataclass(frozen=True)
class _Look:
    """What the detector said of a place, and for how many frames that has counted."""

    place: _Place
    score: float
    frames: int = 1


class FaceScorer:
    """BlazeFace (short range) on crops of the frames of one video. For one thread at a time.

    Args:
        bundle: a `.task` file that holds the detector, such as face_landmarker.task.
    """

    def __init__(self, bundle: Path) -> None:
        with zipfile.ZipFile(bundle) as members:
            model = members.read(_BUNDLE_MEMBER)
        self._interpreter = Interpreter(model_content=model, num_threads=1)
        self._interpreter.allocate_tensors()
        (self._input,) = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        # Of the two outputs, boxes (anchors x 16) and scores (anchors x 1), the scores.
        self._output = min(outputs, key=lambda detail: int(detail["shape"][-1]))
        self._side = int(self._input["shape"][1])
        self._looks: list[_Look] = []

    def scores(self, image: Rgb, faces: Sequence[Points]) -> list[float]:
        """The detector's best score, 0 to 1, at each face of 468 or more normalised points."""
        height, width = image.shape[:2]
        fresh = [look for look in self._looks if look.frames < LOOK_EVERY]
        self._looks = []
        for face in faces:
            place = _Place.of(face, width, height)
            near = next((look for look in fresh if place.near(look.place)), None)
            if near:
                look = replace(near, frames=near.frames + 1)
            else:
                look = _Look(place, self._score(image, place))
            self._looks.append(look)
        return [look.score for look in self._looks]

    def _score(self, image: Rgb, place: _Place) -> float:
        side = self._side
        crop = cv2.warpAffine(image, place.to_crop(side), (side, side))
        self._interpreter.set_tensor(
            self._input["index"], crop.astype(np.float32)[None] / 127.5 - 1.0
        )
        self._interpreter.invoke()
        best = float(self._interpreter.get_tensor(self._output["index"]).max())
        return 1.0 / (1.0 + math.exp(-max(-_CLIP, min(_CLIP, best))))
