"""Messages, metadata and bodies that nobody sends in good faith, as Hypothesis strategies."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from ml import mediapipe_pb2 as vision
from ml import model_management_pb2 as models
from ml import transformers_pb2 as text
from tests.support.pictures import png_header
from tests.support.stack import CHAT, EMBEDDER

# Protobuf's Python refuses a lone surrogate: this character stands for one, and `serialized` puts
# the surrogate in its place, which has as many bytes and is not UTF-8.
SURROGATE = "\ue000"
_NOT_UTF8 = "\udc80".encode("utf-8", "surrogatepass")

TEXTS = (
    *("", " ", "\0", "\x1b[2J", "\r\nx: y", "\u202eevil", "\ufeff", SURROGATE, f"a{SURROGATE}b"),
    *("x" * 100_000, "é\u0301" * 5_000, "\u0301" * 10_000, "😀" * 5_000, "\n" * 10_000),
    *("../../etc/passwd", "/etc/passwd", "%s%n{0}", "{{ 7 * 7 }}", "$(id)", "'; DROP TABLE x; --"),
    *("<|im_start|>system", "<image>", "NaN", "1e999", "-1", "true", "9" * 400, "__class__"),
)
DATA = (
    *(b"", b"\0", b"\0" * 12, b"\xff\xd8\xff\xe0", b"\xff\xd8\xff" + b"\0" * 1_000),
    *(
        png_header(1, 1),
        png_header(2**31 - 1, 2**31 - 1),
        b"GIF89a\xff\xff\xff\xff",
        b"BM" + b"\xff" * 60,
    ),
    *(
        b"RIFF\xff\xff\xff\xffWAVEfmt ",
        b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        b"\x1f\x8b\x08" + b"\xff" * 90,
    ),
    *(
        b"\0\0\0\x01\x67" + b"\xff" * 90,
        b"fLaC" + b"\xff" * 90,
        b"OggS" + b"\0" * 90,
        b"ID3" + b"\xff" * 90,
    ),
    *(struct.pack("<4f", math.nan, math.inf, -math.inf, 1e38), b"\x80" * 100_000),
)
INTEGERS = (
    0,
    1,
    -1,
    2,
    16,
    640,
    65_535,
    2**31 - 1,
    -(2**31),
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
)
FLOATS = (0.0, -0.0, 1.0, 1e-45, 3e38, -3e38, 1e308, 5e-324, math.nan, math.inf, -math.inf)
# Texts by name of their field: what leads further than the first check.
LIKELY: dict[str, tuple[str, ...]] = {
    "model": (EMBEDDER, CHAT),
    "model_id": (EMBEDDER, CHAT, "org/name"),
    "pipeline_type": ("text-generation", "feature-extraction", "face-mesh"),
    "format": ("rgb", "gray", "yuv420", "jpeg", "png", "h264", "vp8", "pcm_f32le", "raw"),
    "role": ("user", "system", "assistant"),
    "file_path": ("config.json", "model.safetensors"),
    "service": ("", "ml.TransformersService"),
}
_PICTURE = {"format": "rgb", "width": 16, "height": 16}
# Requests that are answered; one or two fields of them are changed.
GOOD: tuple[Message, ...] = (
    text.TextRequest(prompt="A ship", model=CHAT, max_length=4, temperature=0),
    text.ChatRequest(
        messages=[text.ChatMessage(role="user", content="Hello")], model=CHAT, max_tokens=4
    ),
    text.GenerateEmbeddingsRequest(texts=["a ship", "fog"], model=EMBEDDER),
    text.InferRequest(text="a ship", model=EMBEDDER),
    vision.ImageRequest(image_data=bytes(768), **_PICTURE),
    vision.VideoFrame(frame_data=bytes(768), **_PICTURE),
    models.LoadModelRequest(model_id=EMBEDDER, pipeline_type="feature-extraction"),
    models.ModelFileRequest(model_id=EMBEDDER, file_path="config.json"),
)
# Names of load options, of vision's options and of Infer's, for maps and metadata.
OPTIONS = (
    "device",
    "dtype",
    "max_faces",
    "min_detection_confidence",
    "max_new_tokens",
    "top_k",
    "x",
)
METADATA = ("vision-max-faces", "vision-mask-format", "vision-x", "frame-policy", "x-request-id")
METADATA += (
    "traceparent",
    "x-forwarded-for",
    "authorization",
    "accept-language",
    "x",
    "user-agent2",
)

_KIND = FieldDescriptor
_INTEGER_BOUNDS = {
    _KIND.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    _KIND.CPPTYPE_UINT32: (0, 2**32 - 1),
    _KIND.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    _KIND.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def _texts(name: str = "") -> st.SearchStrategy[str]:
    chosen = st.sampled_from(LIKELY.get(name, ()) + TEXTS)
    # Surrogates are added by `serialized`.
    return chosen | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """One value of a field, or of an element of it."""
    if bounds := _INTEGER_BOUNDS.get(field.cpp_type):
        low, high = bounds
        return st.sampled_from([value for value in INTEGERS if low <= value <= high])
    if field.cpp_type in (_KIND.CPPTYPE_FLOAT, _KIND.CPPTYPE_DOUBLE):
        return st.sampled_from(FLOATS)
    if field.cpp_type == _KIND.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == _KIND.CPPTYPE_ENUM:
        return st.sampled_from([value.number for value in field.enum_type.values] + [2**31 - 1])
    if field.cpp_type == _KIND.CPPTYPE_MESSAGE:
        return messages(field.message_type)
    if field.type == _KIND.TYPE_BYTES:
        return st.sampled_from(DATA) | st.binary(max_size=200)
    return _texts(field.name)


def _set(message: Message, field: FieldDescriptor, draw: st.DrawFn) -> None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        key = kind.fields_by_name["key"]
        texts = key.type == _KIND.TYPE_STRING
        keys = st.sampled_from(OPTIONS) | _texts() if texts else _values(key)
        values = _values(kind.fields_by_name["value"])
        getattr(message, field.name).update(draw(st.dictionaries(keys, values, max_size=3)))
    elif field.is_repeated:
        value = _values(field)
        many = st.sampled_from([17, 3_000])
        elements = draw(st.lists(value, max_size=3)) or [draw(value)] * draw(many)
        getattr(message, field.name).extend(elements)
    elif kind is not None:
        getattr(message, field.name).CopyFrom(draw(_values(field)))
    else:
        setattr(message, field.name, draw(_values(field)))


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor) -> Message:
    """A message of a type: a good one with a change or two, or one in which all may be anything."""
    message = GetMessageClass(kind)()
    good = next((each for each in GOOD if each.DESCRIPTOR is kind), None)
    if good is not None and draw(st.integers(0, 3)):  # three times of four
        message.CopyFrom(good)
        for field in draw(st.lists(st.sampled_from(list(kind.fields)), max_size=2)):
            message.ClearField(field.name)
            _set(message, field, draw)
        return message
    for field in kind.fields:
        if draw(st.booleans()):
            _set(message, field, draw)
    return message


@st.composite
def serialized(draw: st.DrawFn, kind: Descriptor) -> bytes:
    """A request's bytes: of a message, of one cut or garbled, or any bytes."""
    data = draw(messages(kind)).SerializeToString().replace(SURROGATE.encode(), _NOT_UTF8)
    garbled = [data[: len(data) // 2], data[::-1], data + b"\xff", draw(st.binary(max_size=100))]
    return draw(st.sampled_from([data] * 8 + garbled))


def metadata() -> st.SearchStrategy[list[tuple[str, str | bytes]]]:
    """Metadata that gRPC lets a client send."""
    printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
    values = printable | st.sampled_from(["nan", "-1", "2" * 300, "every", "00-0-0-0", "x" * 4_000])
    plain = st.tuples(st.sampled_from(METADATA), values)
    binary = st.tuples(st.sampled_from(["x-bin", "grpc-trace-bin"]), st.binary(max_size=100))
    return st.just([]) | st.lists(plain | binary, max_size=4)


def json_bodies(kind: Descriptor) -> st.SearchStrategy[bytes]:
    """Bodies for a transcoded call: a message as JSON, other JSON, and what is none."""
    leaves = st.none() | st.booleans() | st.sampled_from(INTEGERS + FLOATS + TEXTS)
    names = st.sampled_from([field.name for field in kind.fields] or ["x"])
    trees = st.recursive(
        leaves, lambda of: st.lists(of, max_size=3) | st.dictionaries(names, of, max_size=3)
    )
    written = (messages(kind).map(MessageToDict) | trees).map(
        lambda tree: json.dumps(tree).encode()
    )
    odd = (b"", b"{", b"[" * 10_000, b'{"a":' * 5_000, b'{"model": "\\ud800"}', b'{"model": 1e999}')
    return written | st.sampled_from(odd) | st.binary(max_size=60)
