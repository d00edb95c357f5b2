"""The header and the parts of .litertlm files, made here, and the flatbuffers in them."""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import flatbuffers
import pytest

from ml.internal import litertlm_pb2
from shared.errors import InvalidModelError
from tests.support.tiny_tflite import Graph, Op, Tensor, adding, tflite
from text_svc.formats import litertlm
from text_svc.formats.litertlm import read_litertlm
from text_svc.formats.tflite import check_tflite
from text_svc.worker.generation.chat_template_process import Renderer

BLOCK = 1024
TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}


def header(sections: list[tuple[int, int, int]]) -> bytes:
    """The FlatBuffer of a header: kind, begin and end of each section."""
    builder = flatbuffers.Builder(256)
    objects = []
    for kind, begin, end in sections:
        builder.StartObject(4)
        builder.PrependUint64Slot(1, begin, 0)
        builder.PrependUint64Slot(2, end, 0)
        builder.PrependUint8Slot(3, kind, 0)
        objects.append(builder.EndObject())
    builder.StartVector(4, len(objects), 4)
    for each in reversed(objects):
        builder.PrependUOffsetTRelative(each)
    vector = builder.EndVector()
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, vector, 0)
    listed = builder.EndObject()
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(1, listed, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def packed(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + zlib.compress(content)


def written(path: Path, *sections: tuple[int, bytes], **changes: Any) -> Path:
    """A file with these sections; `changes` replace the first section's begin or end."""
    places, content = [], b""
    for kind, data in sections:
        begin = BLOCK + len(content)
        places.append((kind, begin, begin + len(data)))
        content += data
    if changes and places:
        kind, begin, end = places[0]
        places[0] = (kind, changes.get("begin", begin), changes.get("end", end))
    listed = header(places)
    start = litertlm.MAGIC + struct.pack("<IIII", 1, 7, 0, 0) + struct.pack("<Q", 32 + len(listed))
    path.write_bytes((start + listed).ljust(BLOCK, b"\0") + content)
    return path


def metadata(**fields: Any) -> bytes:
    return litertlm_pb2.LlmMetadata(**fields).SerializeToString()


WEIGHTS = (litertlm.TFLITE, tflite(adding([1, 2])))
LARGE = (litertlm.HF_TOKENIZER, packed(b"a" * 10**6))
HF = (litertlm.HF_TOKENIZER, packed(json.dumps(TOKENIZER).encode()))


def test_the_parts_are_unpacked_as_a_model_has_them(tmp_path: Path) -> None:
    sampling = litertlm_pb2.LlmSampling(type=2, k=40, p=0.5, temperature=0.25)
    meta = metadata(jinja_prompt_template="{{ messages }}", sampler_params=sampling)
    path = written(tmp_path / "a.litertlm", (litertlm.METADATA, meta), HF, WEIGHTS)
    file = read_litertlm(path)
    assert file.version == "1.7.0"
    assert [each.kind for each in file.sections] == [5, 6, 3]
    folder = tmp_path / "unpacked"
    file.unpack(folder)
    assert json.loads((folder / "tokenizer.json").read_text()) == TOKENIZER
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 40,
    }


def test_a_greedy_file_and_one_that_says_nothing_of_sampling() -> None:
    greedy = litertlm_pb2.LlmMetadata(sampler_params=litertlm_pb2.LlmSampling(type=3, k=5))
    assert litertlm.generation_config_of(greedy) == {"temperature": 0}
    assert litertlm.generation_config_of(litertlm_pb2.LlmMetadata()) == {}


def test_affixes_become_a_chat_template() -> None:
    affixes = litertlm_pb2.LlmPromptTemplates(
        user={"prefix": '<user "1">\n', "suffix": "</user>\n"},
        model={"prefix": "<model>\n", "suffix": "</model>\n"},
        system={"prefix": "{{ system }}", "suffix": "\\é\n"},
    )
    template = litertlm.chat_template_of(litertlm_pb2.LlmMetadata(prompt_templates=affixes))
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    rendered = Renderer(template, 10_000).answer({"messages": messages})
    assert rendered == {
        "text": '{{ system }}Be kind.\\é\n<user "1">\nHello</user>\n<model>\nHi</model>\n'
        '<user "1">\nBye</user>\n<model>\n'
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end": 1 << 40}, "section 0 is from byte 1024 to 1099511627776, and the file has"),
        ({"begin": 8}, "section 0 is from byte 8"),
        ({"begin": 3000, "end": 2000}, "section 0 is from byte 3000 to 2000"),
    ],
)
def test_sections_lie_inside_of_the_file(
    tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    path = written(tmp_path / "a.litertlm", (litertlm.METADATA, metadata()), WEIGHTS, **changes)
    with pytest.raises(InvalidModelError, match=message):
        read_litertlm(path)


def test_any_damage_of_the_header_is_an_error_and_nothing_else(tmp_path: Path) -> None:
    """Each byte of the header, set to three values; and the file, cut off at each."""
    whole = written(tmp_path / "a.litertlm", (litertlm.METADATA, metadata()), HF, WEIGHTS)
    content = whole.read_bytes()
    (end,) = struct.unpack_from("<Q", content, 24)
    for place in range(end):
        for value in (0, 0x7F, 0xFF):
            whole.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            _read_or_refuse(whole)
        whole.write_bytes(content[:place])
        _read_or_refuse(whole)


def _read_or_refuse(path: Path) -> None:
    with contextlib.suppress(InvalidModelError):
        size = path.stat().st_size
        assert all(each.end <= size for each in read_litertlm(path).sections)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ([WEIGHTS], "it has no metadata of a language model"),
        ([(litertlm.METADATA, metadata()), WEIGHTS], "it has no tokenizer"),
        ([(litertlm.METADATA, b"\xff" * 9), HF, WEIGHTS], "its metadata cannot be read"),
        ([(litertlm.METADATA, bytes(3000)), HF, WEIGHTS], "has 3000 bytes; the limit is 2048"),
        (
            [
                (litertlm.METADATA, metadata()),
                (litertlm.HF_TOKENIZER, packed(b"a" * 10**6)),
                WEIGHTS,
            ],
            "tokenizer.json has 1000000 bytes; the limit is 4096",
        ),
        (
            [
                (litertlm.METADATA, metadata()),
                (litertlm.HF_TOKENIZER, bytes([9] + [0] * 7) + zlib.compress(b"a" * 10**6)),
                WEIGHTS,
            ],
            "tokenizer.json has other bytes than its size says",
        ),
        (
            [(litertlm.METADATA, metadata()), (litertlm.HF_TOKENIZER, b"12345678x"), WEIGHTS],
            "tokenizer.json",
        ),
    ],
)
def test_broken_parts_are_refused(
    tmp_path: Path, sections: list[tuple[int, bytes]], message: str
) -> None:
    path = written(tmp_path / "a.litertlm", *sections)
    with pytest.raises(InvalidModelError, match=message):
        read_litertlm(path).unpack(tmp_path / "unpacked", 2048, 4096)


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.litertlm", (litertlm.METADATA, metadata()), HF)
    with pytest.raises(InvalidModelError, match="it has no weights"):
        read_litertlm(path)


def one_op(kind: str) -> bytes:
    return tflite(Graph([Tensor("x", [2]), Tensor("y", [2])], [Op(kind, ["x"], ["y"])], "x", "y"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"", "it is too short"),
        (b"GGUF" + bytes(100), "bytes 4 to 7 are not TFL3"),
        (b"\xff\xff\xff\x7fTFL3", "an offset leads out of the file"),
        (one_op("FlexErf"), "needs operations of TensorFlow, .*: FlexErf"),
        (one_op("VAR_HANDLE"), r"keeps variables from one call to the next \(VAR_HANDLE\)"),
    ],
)
def test_a_tflite_that_is_refused(tmp_path: Path, model: bytes, message: str) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(model)
    with pytest.raises(InvalidModelError, match=message):
        check_tflite(path)


def test_a_tflite_in_order(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(tflite(adding([1, 2])))
    check_tflite(path)
