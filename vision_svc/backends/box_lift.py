"""From the nine points of a box in a picture to its pose: EPnP, as MediaPipe Objectron has it.

V. Lepetit, F. Moreno-Noguer, P. Fua, "EPnP: An Accurate O(n) Solution to the PnP Problem", IJCV
2009, with the box's centre and the centres of its right, top and front faces as control points.
Source: mediapipe/modules/objectron/calculators/epnp.cc.

The camera's space has x to the right, y up and z towards the viewer; what the camera sees has a
negative z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[np.float64]"

POINTS = 9
# The corners in units of half the edges, in the order of the models' output: back bottom left,
# front bottom left, back top left, front top left, and the same on the right.
CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
# The weights that make each corner out of the control points.
_WEIGHTS = np.column_stack([1 - CORNERS.sum(1), CORNERS])


@dataclass(frozen=True)
class LiftedBox:
    """A box in the camera's space, in units of its longest edge.

    Attributes:
        points: the centre and the 8 corners, 9 x 3, as the lift has them: with noise in the
            picture, the angles between the edges are not quite right.
        rotation: from the box's axes to the camera's, 3 x 3; the nearest to the lifted edges.
        scale: the lengths of the edges along the box's x, y and z.
    """

    points: Array
    rotation: Array
    scale: Array

    @property
    def angles(self) -> tuple[float, float, float]:
        """Roll, pitch and yaw in degrees: rotation = Rz(roll) Rx(pitch) Ry(yaw)."""
        r = self.rotation
        roll = math.atan2(-r[0, 1], r[1, 1])
        pitch = math.asin(max(-1.0, min(1.0, r[2, 1])))
        yaw = math.atan2(-r[2, 0], r[2, 2])
        return math.degrees(roll), math.degrees(pitch), math.degrees(yaw)


def lift(points: Array, focal: tuple[float, float]) -> LiftedBox:
    """The box whose points are seen at these places.

    Args:
        points: 9 x 2, from 0 to 1 over the picture's width and height; the centre is not used.
        focal: the camera's focal length in halves of the picture's width and of its height; the
            middle of the picture is on its axis.
    """
    x, y = points[1:, 0] * 2 - 1, 1 - points[1:, 1] * 2
    equations = np.zeros((2 * len(CORNERS), 4, 3))
    equations[0::2, :, 0] = focal[0] * _WEIGHTS
    equations[0::2, :, 2] = x[:, None] * _WEIGHTS
    equations[1::2, :, 1] = focal[1] * _WEIGHTS
    equations[1::2, :, 2] = y[:, None] * _WEIGHTS
    matrix = equations.reshape(len(equations), 12)
    _, vectors = np.linalg.eigh(matrix.T @ matrix)
    control = vectors[:, 0].reshape(4, 3)  # of the least eigenvalue, known but for its scale
    if control[0, 2] > 0:
        control = -control  # the box is before the camera
    edges = 2 * (control[1:] - control[0])
    lengths = np.linalg.norm(edges, axis=1)
    unit = max(float(lengths.max()), 1e-9)
    left, _, right = np.linalg.svd((edges / np.maximum(lengths, 1e-9)[:, None]).T)
    turned = np.diag([1, 1, np.sign(np.linalg.det(left @ right)) or 1.0])
    return LiftedBox(
        points=np.vstack([control[:1], _WEIGHTS @ control]) / unit,
        rotation=left @ turned @ right,
        scale=lengths / unit,
    )
