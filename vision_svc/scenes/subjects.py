"""Who and what is in a frame: faces and objects, by the tasks that detect them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ml import mediapipe_pb2 as pb
from shared.errors import ModelNotLoadedError
from vision_svc.options import parse_options
from vision_svc.scenes import FACE_LABEL
from vision_svc.streams.tracker import Tracker

if TYPE_CHECKING:
    from vision_svc.detector import VisionTask
    from vision_svc.frames.types import DecodedFrame
    from vision_svc.instances import Instances
    from vision_svc.options import Options


@dataclass(frozen=True)
class Seen:
    """Something in a frame; its box is normalised: left, top, right, bottom."""

    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class SubjectTasks:
    """The tasks that look for subjects."""

    faces: VisionTask
    objects: VisionTask


class SubjectDetector:
    """Looks for faces and objects in the frames of one stream.

    Args:
        instances: where the tasks' detectors come from.
        tasks: the tasks.
    """

    def __init__(self, instances: Instances, tasks: SubjectTasks) -> None:
        self._tasks = tasks
        self._faces = Tracker(instances, tasks.faces)
        self._objects = Tracker(instances, tasks.objects)
        self._no_objects = False

    def faces(self, frame: DecodedFrame, options: Options) -> Sequence[Seen]:
        """The faces, if the option `subjects` wants them."""
        if options["subjects"] == "objects":
            return []
        chosen = {
            name: str(options[name])
            for name in ("face_range", "min_detection_confidence")
            if name in options
        }
        found, _ = self._faces.detect(frame, parse_options(self._tasks.faces.options, chosen))
        assert isinstance(found, pb.FaceDetectionResponse)
        return [
            Seen(
                FACE_LABEL,
                face.confidence,
                (face.x, face.y, face.x + face.width, face.y + face.height),
            )
            for face in found.faces
        ]

    def objects(self, frame: DecodedFrame, options: Options) -> Sequence[Seen]:
        """The objects, if the option `subjects` wants them.

        Without a model of objects there are none, unless they are all that is wanted.

        Raises:
            ModelNotLoadedError: there is no such model.
        """
        if options["subjects"] == "faces" or self._no_objects:
            return []
        chosen = {"min_detection_confidence": str(options["min_detection_confidence"])}
        try:
            found, _ = self._objects.detect(
                frame, parse_options(self._tasks.objects.options, chosen)
            )
        except ModelNotLoadedError:
            if options["subjects"] == "objects":
                raise
            self._no_objects = True
            return []
        assert isinstance(found, pb.ObjectDetectionResponse)
        return [
            Seen(
                item.label,
                item.confidence,
                (
                    item.bbox.x,
                    item.bbox.y,
                    item.bbox.x + item.bbox.width,
                    item.bbox.y + item.bbox.height,
                ),
            )
            for item in found.objects
        ]

    def close(self) -> None:
        """Returns the detectors."""
        self._faces.close()
        self._objects.close()
