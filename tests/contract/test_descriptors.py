"""The project's protos hold everything that the published contract holds, unchanged."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2 as d

from tests.contract.compiled import CONTRACT, descriptor_set

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
# Additions begin here, so that they never meet a field of a client that does not know them.
FIRST_NEW_FIELD = 20


def _messages(files: d.FileDescriptorSet) -> dict[str, d.DescriptorProto]:
    found = {}
    for file in files.file:
        waiting = [(f"{file.package}.{m.name}", m) for m in file.message_type]
        while waiting:
            name, message = waiting.pop()
            found[name] = message
            waiting += [(f"{name}.{m.name}", m) for m in message.nested_type]
    return found


def _methods(files: d.FileDescriptorSet) -> dict[str, tuple[str, str, bool, bool]]:
    return {
        f"/{file.package}.{service.name}/{m.name}": (
            m.input_type,
            m.output_type,
            m.client_streaming,
            m.server_streaming,
        )
        for file in files.file
        for service in file.service
        for m in service.method
    }


CONTRACT_SET = descriptor_set(CONTRACT, root=CONTRACT.parent)
OURS = descriptor_set(*PROTOS.glob("ml/*.proto"), root=PROTOS)


def _fields() -> Iterator[tuple[str, d.FieldDescriptorProto]]:
    for name, message in _messages(CONTRACT_SET).items():
        for field in message.field:
            yield name, field


@pytest.mark.parametrize(("message", "field"), list(_fields()), ids=lambda v: getattr(v, "name", v))
def test_every_field_is_as_published(message: str, field: d.FieldDescriptorProto) -> None:
    ours = {f.name: f for f in _messages(OURS)[message].field}[field.name]
    assert (ours.number, ours.type, ours.label, ours.type_name) == (
        field.number,
        field.type,
        field.label,
        field.type_name,
    )
    # Presence is not on the wire, so a field may become optional; it joins no other oneof.
    assert not ours.HasField("oneof_index") or ours.proto3_optional


def test_new_fields_have_new_numbers() -> None:
    contract = _messages(CONTRACT_SET)
    for name, message in _messages(OURS).items():
        if name not in contract:
            continue
        published = {f.name for f in contract[name].field}
        for field in message.field:
            assert field.name in published or field.number >= FIRST_NEW_FIELD, (name, field.name)


def test_every_rpc_is_as_published() -> None:
    ours = _methods(OURS)
    for name, shape in _methods(CONTRACT_SET).items():
        assert ours.get(name) == shape, name


def test_the_internal_service_is_not_in_the_public_package() -> None:
    public = {name.split("/")[1] for name in _methods(OURS)}
    assert public == {
        "ml.ModelManagementService",
        "ml.TransformersService",
        "ml.MediapipeService",
    }


def _buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    buf = Path(sys.executable).with_name("buf")
    return subprocess.run([buf, *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.fixture
def contract_image(tmp_path: Path) -> Path:
    path = tmp_path / "contract.binpb"
    path.write_bytes(CONTRACT_SET.SerializeToString())
    return path


def test_buf_lint() -> None:
    result = _buf("lint")
    assert result.returncode == 0, result.stdout + result.stderr


def test_buf_breaking(contract_image: Path) -> None:
    result = _buf("breaking", "--against", str(contract_image))
    assert result.returncode == 0, result.stdout + result.stderr


def test_buf_breaking_notices(contract_image: Path, tmp_path: Path) -> None:
    """A renumbered field is told: the check above can fail."""
    copy = tmp_path / "copy"
    shutil.copytree(PROTOS, copy / "protos")
    shutil.copy(ROOT / "buf.yaml", copy)
    path = copy / "protos/ml/transformers.proto"
    text = path.read_text()
    assert "string prompt = 1;" in text
    path.write_text(text.replace("string prompt = 1;", "string prompt = 30;"))
    result = _buf("breaking", str(copy), "--against", str(contract_image))
    assert result.returncode != 0
    assert "prompt" in result.stdout
