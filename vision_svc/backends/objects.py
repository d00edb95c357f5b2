"""Objects by MediaPipe's ObjectDetector, their tracks, and the labels of the models."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mediapipe.tasks.metadata import metadata_schema_py_generated as schema
from mediapipe.tasks.metadata import schema_py_generated as tflite
from mediapipe.tasks.python import vision
from mediapipe.tasks.python.components.containers.detections_c import MpDetectionResultC

from ml import mediapipe_pb2 as pb
from shared.errors import UnknownOptionError
from vision_svc.backends import results
from vision_svc.backends.byte_track import ByteTrack, Detection
from vision_svc.backends.mediapipe_tasks import TaskDetector, common_options
from vision_svc.options import label_names

if TYPE_CHECKING:
    from vision_svc.detector import Mode
    from vision_svc.frames.types import Rgb
    from vision_svc.options import Options

# What label files write for a number that no class has.
_NO_LABEL = "???"
# COCO's has 700 bytes.
_MAX_LABEL_FILE_BYTES = 1 << 20
_LABEL_FILES = (
    schema.AssociatedFileType.TENSOR_AXIS_LABELS,
    schema.AssociatedFileType.TENSOR_VALUE_LABELS,
)


def object_detector(path: Path, options: Options, mode: Mode) -> TaskDetector:
    """Boxes with labels.

    Raises:
        UnknownOptionError: the model does not have a label that an option names.
    """
    return detector_of_model(
        path,
        mode,
        max_objects=int(options["max_objects"]),
        min_score=float(options["min_detection_confidence"]),
        allow=label_names(str(options["allow_labels"])),
        deny=label_names(str(options["deny_labels"])),
    )


class ObjectTracker:
    """An object detector whose objects have ids.

    Args:
        detector: finds objects from `low_score` on.
        high_score, low_score: as of `ByteTrack`.
    """

    def __init__(self, detector: TaskDetector, high_score: float, low_score: float) -> None:
        self._detector = detector
        self._tracks = ByteTrack(high_score, low_score)

    def detect(self, image: Rgb, time_ms: int) -> pb.ObjectTrackingResponse:
        found = self._detector.detect(image, time_ms)
        assert isinstance(found, pb.ObjectDetectionResponse)
        # Pixels, since the tracks' aspect ratios are those of pixels.
        height, width = image.shape[:2]
        tracks = self._tracks.update(
            [
                Detection(
                    (
                        *(each.bbox.x * width, each.bbox.y * height),
                        *(each.bbox.width * width, each.bbox.height * height),
                    ),
                    each.label,
                    each.confidence,
                )
                for each in found.objects
            ]
        )
        return results.tracked_objects(tracks, image)

    def close(self) -> None:
        self._detector.close()


def object_tracker(path: Path, options: Options, mode: Mode) -> ObjectTracker:
    """Boxes with labels and ids.

    Raises:
        UnknownOptionError: the model does not have a label that an option names.
    """
    high_score = float(options["min_detection_confidence"])
    low_score = min(high_score, float(options["min_tracking_confidence"]))
    detector = object_detector(path, {**options, "min_detection_confidence": low_score}, mode)
    return ObjectTracker(detector, high_score, low_score)


def detector_of_model(
    model: Path | bytes,
    mode: Mode,
    *,
    max_objects: int,
    min_score: float,
    allow: Sequence[str] = (),
    deny: Sequence[str] = (),
) -> TaskDetector:
    """MediaPipe's ObjectDetector.

    Args:
        model: a .tflite file, or its bytes.
        mode: whether the pictures follow each other.
        max_objects: at most as many objects, the best.
        min_score: objects with a lower score are left out.
        allow: labels, in any case; other objects are left out before overlapping boxes are
            compared. Empty: all.
        deny: labels that are left out likewise.

    Raises:
        UnknownOptionError: the model does not have one of the labels, or none is left.
    """
    content = model if isinstance(model, bytes) else model.read_bytes()
    allowed = _allowed(labels_of_model(content), allow, deny)
    task = vision.ObjectDetector.create_from_options(
        vision.ObjectDetectorOptions(
            **common_options(model, mode),
            max_results=max_objects,
            score_threshold=min_score,
            category_allowlist=allowed,
        )
    )
    return TaskDetector(task, mode, MpDetectionResultC, results.object_detections)


def labels_of_model(model: bytes) -> tuple[str, ...]:
    """The labels in the metadata of a .tflite file, in the order of its classes; () if none.

    Raises:
        ValueError: the file of labels is missing or too large.
    """
    names = _label_files(model)
    if not names:
        return ()
    with zipfile.ZipFile(io.BytesIO(model)) as files:
        if names[0] not in files.namelist():
            raise ValueError(f"the model names a file of labels, {names[0]!r}, and has none")
        with files.open(names[0]) as file:
            # What it says of its size may be a lie; MediaPipe takes no compressed ones.
            data = file.read(_MAX_LABEL_FILE_BYTES + 1)
        if len(data) > _MAX_LABEL_FILE_BYTES:
            raise ValueError(
                f"the model's labels are larger; at most {_MAX_LABEL_FILE_BYTES} bytes are read"
            )
        return tuple(line.strip() for line in data.decode().splitlines())


def _label_files(model: bytes) -> list[str]:
    """The names of the files of labels that the outputs have."""
    tree = tflite.Model.GetRootAsModel(model, 0)
    for i in range(tree.MetadataLength()):
        entry = tree.Metadata(i)
        if entry.Name() == b"TFLITE_METADATA":
            data = tree.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
            graph = schema.ModelMetadata.GetRootAs(data).SubgraphMetadata(0)
            outputs = (
                graph.OutputTensorMetadata(j) for j in range(graph.OutputTensorMetadataLength())
            )
            files = (
                o.AssociatedFiles(j) for o in outputs for j in range(o.AssociatedFilesLength())
            )
            return [file.Name().decode() for file in files if file.Type() in _LABEL_FILES]
    return []


def _allowed(labels: Sequence[str], allow: Sequence[str], deny: Sequence[str]) -> list[str] | None:
    """The labels that remain; None for all."""
    known = {label.lower(): label for label in labels if label not in ("", _NO_LABEL)}
    for option, names in (("allow_labels", allow), ("deny_labels", deny)):
        for name in names:
            if name.lower() not in known:
                raise UnknownOptionError(
                    f"option {option} names {name[:40]!r}, which is no label of the model; it must "
                    f"be one of {', '.join(known.values()) or 'none, since the model has none'}",
                    field=option,
                )
    refused = {name.lower() for name in deny}
    left = {name.lower() for name in allow} or set(known)
    if known and not left - refused:
        raise UnknownOptionError(
            "options allow_labels and deny_labels leave no label of the model", field="deny_labels"
        )
    return [label for key, label in known.items() if key in left - refused] or None
