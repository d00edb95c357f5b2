"""Objects: MediaPipe's own results, and labels that callers name."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import mediapipe as mp
import numpy as np
import pytest
from mediapipe.tasks.python import BaseOptions, vision

from ml import mediapipe_pb2 as pb
from shared.errors import InvalidModelError, ServiceError
from tools import vision_clips
from tools.models import metadata, model_dir
from tools.models.objects import BOX_SCALE, ssd_anchors
from vision_svc.assets import Assets
from vision_svc.backends.mediapipe_tasks import close_task
from vision_svc.backends.objects import labels_of_model
from vision_svc.detector import Mode
from vision_svc.instances import Instances
from vision_svc.options import parse_options
from vision_svc.tasks import OBJECT_DETECTOR

MODEL = OBJECT_DETECTOR.default_asset.file


@pytest.fixture(scope="module")
def folder() -> Path:
    path = model_dir() / "vision"
    if not (path / MODEL).is_file():
        pytest.skip(f"there is no {path / MODEL}: run `make models`")
    return path


@pytest.fixture
def instances(folder: Path) -> Instances:
    return Instances(Assets(folder), 500, 0, lambda: None)


def picture(name: str) -> np.ndarray:
    return vision_clips.read_picture(model_dir() / "pictures" / f"{name}.png")


def detect(instances: Instances, image: np.ndarray, **options: str) -> list[pb.ObjectDetection]:
    parsed = parse_options(OBJECT_DETECTOR.options, options)
    with instances.borrow(OBJECT_DETECTOR, parsed, Mode.VIDEO) as instance:
        return list(instance.detect(image).objects)


def mediapipe_labels(folder: Path, image: np.ndarray, **options: object) -> list[str]:
    task = vision.ObjectDetector.create_from_options(
        vision.ObjectDetectorOptions(BaseOptions(str(folder / MODEL)), **options)
    )
    try:
        result = task.detect(mp.Image(mp.ImageFormat.SRGB, np.ascontiguousarray(image)))
    finally:
        close_task(task)
    return [detection.categories[0].category_name for detection in result.detections]


def test_what_is_in_the_pictures(instances: Instances) -> None:
    for name, label in (("chelsea", "cat"), ("astronaut", "person")):
        best = detect(instances, picture(name))[0]
        assert best.label.lower() == label
        assert best.confidence > 0.5
        assert best.bbox.width * best.bbox.height > 0.4


def test_max_objects_and_threshold_are_those_of_mediapipe(
    instances: Instances, folder: Path
) -> None:
    image = picture("astronaut")
    many = detect(instances, image, min_detection_confidence="0.1")
    assert len(many) > 3
    assert [each.label for each in many] == mediapipe_labels(
        folder, image, score_threshold=0.1, max_results=25, category_denylist=["???"]
    )
    scores = [each.confidence for each in many]
    assert scores == sorted(scores, reverse=True)
    few = detect(instances, image, min_detection_confidence="0.1", max_objects="2")
    assert [each.confidence for each in few] == scores[:2]
    assert detect(instances, image, min_detection_confidence="1") == []


def test_labels_are_allowed_and_denied_in_any_case(instances: Instances, folder: Path) -> None:
    image = picture("astronaut")
    found = {each.label for each in detect(instances, image, min_detection_confidence="0.1")}
    (person,) = (label for label in found if label.lower() == "person")
    assert len(found) > 1
    allowed = detect(instances, image, min_detection_confidence="0.1", allow_labels=" PERSON,")
    assert {each.label for each in allowed} == {person}
    denied = detect(instances, image, min_detection_confidence="0.1", deny_labels="Person")
    assert person not in {each.label for each in denied}
    assert [each.label for each in denied] == mediapipe_labels(
        folder, image, score_threshold=0.1, max_results=25, category_denylist=[person, "???"]
    )
    both = detect(
        *(instances, image), min_detection_confidence="0.1", allow_labels="person,cat",
        deny_labels="cat",
    )  # fmt: skip
    assert {each.label for each in both} == {person}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"allow_labels": "unicorn"}, "option allow_labels names 'unicorn'.*must be one of.*erson"),
        ({"deny_labels": "cat, ???"}, r"option deny_labels names '\?\?\?'"),
        ({"allow_labels": "cat", "deny_labels": "Cat"}, "leave no label"),
        ({"allow_labels": ",".join(["cat"] * 201)}, "names 201 labels; at most 200"),
    ],
)
def test_labels_that_the_model_does_not_have_are_refused(
    instances: Instances, options: dict[str, str], says: str
) -> None:
    with pytest.raises(ServiceError, match=says) as refused:
        detect(instances, picture("chelsea"), **options)
    assert refused.value.field in options
    assert detect(instances, picture("chelsea"))  # the memory of the refused one is free again
    instances.shut_down()
    assert not instances._used_mb


def test_a_model_without_labels_cannot_be_asked_for_them(folder: Path) -> None:
    faces = (folder / "blaze_face_short_range.tflite").read_bytes()
    assert labels_of_model(faces) == ()


def test_labels_that_are_missing_or_too_large_are_refused(folder: Path) -> None:
    model = (folder / MODEL).read_bytes()
    with zipfile.ZipFile(io.BytesIO(model)) as archive:
        (name,) = archive.namelist()
        start = archive.getinfo(name).header_offset
    with pytest.raises(zipfile.BadZipFile):
        labels_of_model(model[:start])
    for members, says in (({}, "has none"), ({name: b"a\n" * (1 << 20)}, "at most 1048576")):
        changed = io.BytesIO(model[:start])
        with zipfile.ZipFile(changed, "a", zipfile.ZIP_DEFLATED) as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        with pytest.raises(ValueError, match=says):
            labels_of_model(changed.getvalue())


def test_labels_that_lie_about_their_size_take_no_memory(folder: Path) -> None:
    model = (folder / MODEL).read_bytes()
    with zipfile.ZipFile(io.BytesIO(model)) as archive:
        (name,) = archive.namelist()
        start = archive.getinfo(name).header_offset
    changed = io.BytesIO(model[:start])
    with zipfile.ZipFile(changed, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(100 << 20))
    lying = changed.getvalue().replace(struct.pack("<I", 100 << 20), struct.pack("<I", 700))
    tracemalloc.start()
    try:
        with pytest.raises(zipfile.BadZipFile):
            labels_of_model(lying)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_what_is_no_object_detector_is_refused_at_load(instances: Instances, folder: Path) -> None:
    for name in ("hair_segmenter.tflite", "gesture_recognizer.task", "selfie_segmenter.tflite"):
        with pytest.raises(InvalidModelError, match="cannot be opened as object-detector"):
            instances.try_model(OBJECT_DETECTOR, folder / name)
    instances.try_model(OBJECT_DETECTOR, folder / MODEL)


def test_a_model_that_opens_and_fails_on_a_picture_is_refused_at_load(
    instances: Instances, folder: Path, tmp_path: Path
) -> None:
    """A label too many: MediaPipe looks at the scores with the first picture."""
    with zipfile.ZipFile(folder / "objectron.task") as bundle:
        model = bundle.read("object_detector.tflite")
    labels = [*labels_of_model(model), "one too many"]
    wrong = tmp_path / "wrong.tflite"
    wrong.write_bytes(
        metadata.detector_model(model, "wrong", labels, list(ssd_anchors()), BOX_SCALE)
    )
    with pytest.raises(InvalidModelError, match="fails as object-detector on a picture"):
        instances.try_model(OBJECT_DETECTOR, wrong)
    instances.shut_down()
    assert not instances._used_mb
