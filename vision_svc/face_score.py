"""How sure the face detector is of a face whose mesh is known.

MediaPipe's face landmarker and holistic landmarker find out whether a face is there but answer with
points alone. So the detector that comes in their own bundle looks once more at an upright crop of
the face, and its best score is the confidence: about 1 ms a face on one core.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter

if TYPE_CHECKING:
    import numpy.typing as npt

    from shared.frames.types import Rgb

_BUNDLE_MEMBER = "face_detector.tflite"
# Outer corners of the eyes: the person's right and left one.
_RIGHT_CORNER, _LEFT_CORNER = 33, 263
# Side of the crop in sizes of the face: BlazeFace wants some room around it.
_CROP_SCALE = 2.0
# Scores are clipped before the sigmoid as the detector's own graph does
# (mediapipe/modules/face_detection, score_clipping_thresh).
_CLIP = 100.0


class FaceScorer:
    """BlazeFace (short range) on crops. For one thread at a time.

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
        self._scores = min(outputs, key=lambda detail: int(detail["shape"][-1]))
        self._side = int(self._input["shape"][1])

    def score(self, image: Rgb, face: Sequence[Any]) -> float:
        """The detector's best score, 0 to 1, around a face of 468 or more normalised points."""
        height, width = image.shape[:2]
        points = np.array([(p.x * width, p.y * height) for p in face], np.float32)
        crop = cv2.warpAffine(image, _to_crop(points, self._side), (self._side, self._side))
        pixels = crop.astype(np.float32)[None] / 127.5 - 1.0
        self._interpreter.set_tensor(self._input["index"], pixels)
        self._interpreter.invoke()
        best = float(self._interpreter.get_tensor(self._scores["index"]).max())
        return float(1.0 / (1.0 + np.exp(-np.clip(best, -_CLIP, _CLIP))))


def _to_crop(points: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float64]:
    """The affine map (2 x 3) that brings the face upright into the middle of a square of `side`."""
    low, high = points.min(axis=0), points.max(axis=0)
    centre = (low + high) / 2
    across = points[_LEFT_CORNER] - points[_RIGHT_CORNER]
    angle = float(np.degrees(np.arctan2(across[1], across[0])))
    scale = side / (_CROP_SCALE * max(1.0, float((high - low).max())))
    matrix = np.asarray(
        cv2.getRotationMatrix2D((float(centre[0]), float(centre[1])), angle, scale), np.float64
    )
    matrix[:, 2] += side / 2 - centre
    return matrix
