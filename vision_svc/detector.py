"""What every task instance is to the rest of the service."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ml import mediapipe_pb2 as pb

if TYPE_CHECKING:
    from vision_svc.frames.types import Rgb

Response: TypeAlias = (
    pb.FaceDetectionResponse
    | pb.FaceMeshResponse
    | pb.HandDetectionResponse
    | pb.HolisticTrackingResponse
    | pb.IrisTrackingResponse
    | pb.PoseDetectionResponse
    | pb.SegmentationResponse
)


class Mode(enum.Enum):
    """Whether pictures stand alone or follow each other."""

    IMAGE = "image"
    VIDEO = "video"


class Detector(Protocol):
    """A task object and its model in memory. One thread at a time may use it."""

    def detect(self, image: Rgb, time_ms: int) -> Response:
        """What the task finds, without the frame's marks.

        Args:
            image: the pixels.
            time_ms: the stream's own clock, strictly increasing; not read in IMAGE mode.
        """
        ...

    def close(self) -> None:
        """Frees the model. Later calls of `detect` are an error."""
        ...
