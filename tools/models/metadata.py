"""Writes the metadata that MediaPipe Tasks requires inside a .tflite model.

The schemas are TensorFlow Lite's metadata schema and MediaPipe's image segmenter extension, in the
flatbuffers object API that the mediapipe package generates from them.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
from mediapipe.tasks.metadata import image_segmenter_metadata_schema_py_generated as segmenter
from mediapipe.tasks.metadata import metadata_schema_py_generated as schema
from mediapipe.tasks.metadata import schema_py_generated as tflite

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
    custom = schema.CustomMetadataT()
    custom.name = "SEGMENTER_METADATA"
    custom.data = list(_packed(options, b"V001"))
    metadata = _metadata(name, [_image_input()], outputs, "1.5.0")
    metadata.subgraphMetadata[0].customMetadata = [custom]
    return _attach(model, metadata, {"labels.txt": labels})


def classifier_model(
    model: bytes, name: str, input_name: str, output_name: str, labels: Sequence[str]
) -> bytes:
    """Return a classifier of a vector, with the labels of its only output."""
    taken, given = schema.TensorMetadataT(), schema.TensorMetadataT()
    taken.name, given.name = input_name, output_name
    given.associatedFiles = [_labels_file()]
    return _attach(model, _metadata(name, [taken], [given], "1.0.0"), {"labels.txt": labels})


def _image_input() -> Any:
    normalization = schema.NormalizationOptionsT()
    normalization.mean, normalization.std = [0.0], [255.0]
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
