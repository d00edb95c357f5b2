"""Builds the models of object detection from those that MediaPipe Objectron's package carries."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from tools.models import metadata
from tools.models.bundles import write_bundle
from tools.models.metadata import Anchor

# The package's file of assets is its label map, and then the SSD. Source: the offsets in its
# objectron_solution_packed_assets_loader.js.
LABELS_END = 184

# The anchors of the SSD, of an input of 300 x 300. Source: SsdAnchorsCalculator's options in
# mediapipe/modules/objectron/object_detection_oid_v4_cpu.pbtxt.
SIDE = 300
STRIDES = (16, 32, 64, 128, 256, 512)
RATIOS = (1.0, 2.0, 0.5, 3.0, 1 / 3)
LEAST_SCALE, MOST_SCALE = 0.2, 0.95
BOX_SCALE = 5.0

CLASSES = ("camera", "chair", "cup", "sneakers")


def ssd_anchors() -> Iterator[Anchor]:
    """The anchors in the order of the model's boxes, as SsdAnchorsCalculator lays them out."""

    def scale(layer: int) -> float:
        return LEAST_SCALE + (MOST_SCALE - LEAST_SCALE) * layer / (len(STRIDES) - 1)

    for layer, stride in enumerate(STRIDES):
        boxes = [(ratio, scale(layer)) for ratio in RATIOS]
        if layer == 0:  # reduce_boxes_in_lowest_layer
            boxes = [(1.0, 0.1), *boxes[1:3]]
        else:
            above = 1.0 if layer == len(STRIDES) - 1 else scale(layer + 1)
            boxes.append((1.0, math.sqrt(scale(layer) * above)))
        cells = math.ceil(SIDE / stride)
        for row in range(cells):
            for column in range(cells):
                for ratio, size in boxes:
                    root = math.sqrt(ratio)
                    yield (column + 0.5) / cells, (row + 0.5) / cells, size * root, size / root


def object_detector(inputs: Mapping[str, Path], out: Path) -> None:
    """The SSD MobileNetV2 with the metadata of an object detector: 23 labels of Open Images."""
    assets = inputs["objectron_solution_packed_assets.data"].read_bytes()
    labels = assets[:LABELS_END].decode().splitlines()
    model = metadata.detector_model(
        assets[LABELS_END:], "ObjectDetector", labels, list(ssd_anchors()), BOX_SCALE
    )
    (out / "object_detector.tflite").write_bytes(model)


def objectron(inputs: Mapping[str, Path], out: Path) -> None:
    """The SSD, and the model that finds the corners of a box in 3D for each class."""
    object_detector(inputs, out)
    ssd = out / "object_detector.tflite"
    write_bundle(
        out / "objectron.task",
        {
            ssd.name: ssd.read_bytes(),
            **{
                f"{name}.tflite": inputs[f"object_detection_3d_{name}.tflite"].read_bytes()
                for name in CLASSES
            },
        },
    )
