"""The confidence of a face whose mesh is known.

MediaPipe's face landmarker and holistic landmarker compute whether there is a face, but return its
points alone. So the detector in their own bundle is run once more, on an upright crop of the face,
and its best score is the confidence. That takes more than 1 ms of a core, a sixth of what the mesh
takes; so while a face stays in its place, only every fourth frame is scored.
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
# Side of the crop, in sizes of the face: BlazeFace needs some space around it.
_CROP_SCALE = 2.0
# Scores are clipped before the sigmoid as the detector's own graph does
# (mediapipe/modules/face_detection, score_clipping_thresh).
_CLIP = 100.0
# Frames for which a score is valid, the first included, while the face stays in its place.
FRAMES_PER_SCORE = 4
# The largest changes of a face that stays in its place: the earlier crop would still show it whole
# and upright.
_MAX_SHIFT = 0.2  # of its size
_MAX_GROWTH = 1.25
_MAX_TURN = 15.0  # degrees


@dataclass(frozen=True)
class _Place:
    """The place of a face: its centre and size in pixels, and its tilt in degrees."""

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
        """Whether a crop made for one place also shows a face in the other."""
        grown = max(self.size, other.size) / min(self.size, other.size)
        turned = abs((self.angle - other.angle + 180) % 360 - 180)
        moved = math.hypot(self.x - other.x, self.y - other.y) / self.size
        return moved <= _MAX_SHIFT and grown <= _MAX_GROWTH and turned <= _MAX_TURN

    def to_crop(self, side: int) -> npt.NDArray[np.float64]:
        """The affine map (2 x 3) that turns the face upright and centres it in a square."""
        scale = side / (_CROP_SCALE * self.size)
        turn = cv2.getRotationMatrix2D((self.x, self.y), self.angle, scale)
        shift = [[0.0, 0.0, side / 2 - self.x], [0.0, 0.0, side / 2 - self.y]]
        matrix: npt.NDArray[np.float64] = np.asarray(turn, np.float64) + np.array(shift)
        return matrix


@dataclass(frozen=True)
class _ScoredPlace:
    """The detector's score for a place, and the number of frames it has been used for."""

    place: _Place
    score: float
    frames: int = 1


class FaceScorer:
    """Scores faces with BlazeFace (short range) on crops of the frames of one video.

    For one thread at a time.

    Args:
        bundle: a `.task` file that contains the detector, such as face_landmarker.task.
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
        self._scored: list[_ScoredPlace] = []

    def scores(self, image: Rgb, faces: Sequence[Points]) -> list[float]:
        """The detector's best score, from 0 to 1, for each face.

        Args:
            image: the frame.
            faces: the mesh of each face: at least 468 normalised points.
        """
        height, width = image.shape[:2]
        valid = [scored for scored in self._scored if scored.frames < FRAMES_PER_SCORE]
        self._scored = []
        for face in faces:
            place = _Place.of(face, width, height)
            near = next((scored for scored in valid if place.near(scored.place)), None)
            if near:
                scored = replace(near, frames=near.frames + 1)
            else:
                scored = _ScoredPlace(place, self._score(image, place))
            self._scored.append(scored)
        return [scored.score for scored in self._scored]

    def _score(self, image: Rgb, place: _Place) -> float:
        side = self._side
        crop = cv2.warpAffine(image, place.to_crop(side), (side, side))
        self._interpreter.set_tensor(
            self._input["index"], crop.astype(np.float32)[None] / 127.5 - 1.0
        )
        self._interpreter.invoke()
        best = float(self._interpreter.get_tensor(self._output["index"]).max())
        return 1.0 / (1.0 + math.exp(-max(-_CLIP, min(_CLIP, best))))
