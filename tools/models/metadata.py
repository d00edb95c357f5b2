"""Writes the metadata that MediaPipe Tasks requires inside a .tflite model.

The schemas are TensorFlow Lite's metadata schema and MediaPipe's extensions of it for image
segmenters and object detectors, in the flatbuffers object API that the mediapipe package generates
from them.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import flatbuffers  # type: ignore[import-untyped]
from mediapipe.tasks.metadata import image_segmenter_metadata_schema_py_generated as segmenter
from mediapipe.tasks.metadata import metadata_schema_py_generated as schema
from mediapipe.tasks.metadata import object_detector_metadata_schema_py_generated as detector
from mediapipe.tasks.metadata import schema_py_generated as tflite

# A box of an SSD before any detection: centre x and y, width and height, from 0 to 1.
Anchor: TypeAlias = tuple[float, float, float, float]

ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # so that the same content gives the same bytes


def image_model(model: bytes, name: str) -> bytes:
    """Return a model of one RGB image in 0 to 1, with its output tensors' own names."""
    image, outputs = _image_input(), _named_outputs(model)
    return _attach(model, _metadata(name, [image], outputs, "1.0.0"), {})


def segmenter_model(model: bytes, name: str, labels: Sequence[str]) -> bytes:
    """Return a segmenter of one RGB image in 0 to 1, whose masks need a softmax over `labels`."""
    outputs = _named_outputs(model)
    outputs[-1].associatedFiles = [_labels_file()]
    options = segmenter.ImageSegmenterOptionsT()
    options.activation = segmenter.Activation.SOFTMAX
    options.minParserVersion = "1.0.0"
    metadata = _metadata(name, [_image_input()], outputs, "1.5.0")
    metadata.subgraphMetadata[0].customMetadata = [_custom("SEGMENTER_METADATA", options)]
    return _attach(model, metadata, {"labels.txt": labels})


def detector_model(
    model: bytes, name: str, labels: Sequence[str], anchors: Sequence[Anchor], box_scale: float
) -> bytes:
    """Return an SSD without its last step, with what that step needs, from MediaPipe.

    Args:
        model: takes one RGB image in -1 to 1; its outputs are the boxes, 4 numbers relative to
            each anchor, and the scores of all labels before the sigmoid.
        name: of the model.
        labels: of the scores, in order.
        anchors: of the boxes, in order.
        box_scale: what a box's size is multiplied by before its exponential; twice that for its
            centre.
    """
    boxes, scores = _named_outputs(model)
    scores.name, scores.associatedFiles = "score", [_labels_file()]
    boxes.name = "location"
    for output, kind in (
        (boxes, (schema.ContentProperties.BoundingBoxProperties, schema.BoundingBoxPropertiesT())),
        (scores, (schema.ContentProperties.FeatureProperties, schema.FeaturePropertiesT())),
    ):
        output.content = schema.ContentT()
        output.content.contentPropertiesType, output.content.contentProperties = kind
    boxes.content.contentProperties.type = schema.BoundingBoxType.BOUNDARIES
    boxes.content.contentProperties.index = [0, 1, 2, 3]
    fixed = detector.FixedAnchorsSchemaT()
    fixed.anchors = []
    for anchor in anchors:
        entry = detector.FixedAnchorT()
        entry.xCenter, entry.yCenter, entry.width, entry.height = anchor
        fixed.anchors.append(entry)
    decoding = detector.TensorsDecodingOptionsT()
    decoding.numClasses, decoding.numBoxes, decoding.numCoords = len(labels), len(anchors), 4
    decoding.numValuesPerKeypoint = 2  # of no key points; 0 is refused
    decoding.xScale = decoding.yScale = 2 * box_scale
    decoding.wScale = decoding.hScale = box_scale
    decoding.applyExponentialOnBoxSize = decoding.sigmoidScore = True
    options = detector.ObjectDetectorOptionsT()
    options.ssdAnchorsOptions = detector.SsdAnchorsOptionsT()
    options.ssdAnchorsOptions.fixedAnchorsSchema = fixed
    options.tensorsDecodingOptions = decoding
    metadata = _metadata(name, [_image_input(127.5, 127.5)], [boxes, scores], "1.5.0")
    metadata.subgraphMetadata[0].customMetadata = [_custom("DETECTOR_METADATA", options)]
    return _attach(model, metadata, {"labels.txt": labels})


def classifier_model(
    model: bytes, name: str, input_name: str, output_name: str, labels: Sequence[str]
) -> bytes:
    """Return a classifier of a vector, with the labels of its only output."""
    taken, given = schema.TensorMetadataT(), schema.TensorMetadataT()
    taken.name, given.name = input_name, output_name
    given.associatedFiles = [_labels_file()]
    return _attach(model, _metadata(name, [taken], [given], "1.0.0"), {"labels.txt": labels})


def _image_input(mean: float = 0.0, std: float = 255.0) -> Any:
    normalization = schema.NormalizationOptionsT()
    normalization.mean, normalization.std = [mean], [std]
    unit = schema.ProcessUnitT()
    unit.optionsType = schema.ProcessUnitOptions.NormalizationOptions
    unit.options = normalization
    image = schema.ImagePropertiesT()
    image.colorSpace = schema.ColorSpaceType.RGB
    content = schema.ContentT()
    content.contentPropertiesType = schema.ContentProperties.ImageProperties
    content.contentProperties = image
    tensor = schema.TensorMetadataT()
    tensor.name, tensor.content, tensor.processUnits = "image", content, [unit]
    return tensor


def _named_outputs(model: bytes) -> list[Any]:
    graph = tflite.ModelT.InitFromObj(tflite.Model.GetRootAsModel(model, 0)).subgraphs[0]
    outputs = []
    for index in graph.outputs:
        output = schema.TensorMetadataT()
        output.name = graph.tensors[index].name.decode()
        outputs.append(output)
    return outputs


def _labels_file() -> Any:
    file = schema.AssociatedFileT()
    file.name = "labels.txt"
    file.type = schema.AssociatedFileType.TENSOR_AXIS_LABELS
    return file


def _metadata(name: str, inputs: list[Any], outputs: list[Any], parser: str) -> Any:
    graph = schema.SubGraphMetadataT()
    graph.inputTensorMetadata, graph.outputTensorMetadata = inputs, outputs
    metadata = schema.ModelMetadataT()
    metadata.name, metadata.subgraphMetadata = name, [graph]
    metadata.minParserVersion = parser
    return metadata


def _custom(name: str, options: Any) -> Any:
    custom = schema.CustomMetadataT()
    custom.name = name
    custom.data = list(_packed(options, b"V001"))
    return custom


def _packed(table: Any, identifier: bytes) -> bytes:
    builder = flatbuffers.Builder(1 << 12)
    builder.Finish(table.Pack(builder), identifier)
    return bytes(builder.Output())


def _attach(model: bytes, metadata: Any, files: Mapping[str, Sequence[str]]) -> bytes:
    """Replace the model's metadata buffer, and append the label files as a zip."""
    tree = tflite.ModelT.InitFromObj(tflite.Model.GetRootAsModel(model, 0))
    buffer = tflite.BufferT()
    buffer.data = list(_packed(metadata, b"M001"))
    tree.buffers.append(buffer)
    entry = tflite.MetadataT()
    entry.name, entry.buffer = "TFLITE_METADATA", len(tree.buffers) - 1
    others = [old for old in tree.metadata or [] if old.name != b"TFLITE_METADATA"]
    tree.metadata = [*others, entry]
    result = io.BytesIO(_packed(tree, b"TFL3"))
    if files:
        with zipfile.ZipFile(result, "a") as archive:
            for name, lines in files.items():
                archive.writestr(zipfile.ZipInfo(name, ZIP_EPOCH), "\n".join(lines) + "\n")
    return result.getvalue()
