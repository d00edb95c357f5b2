"""A .litertlm file: sections that would be files of their own in a model's folder elsewhere.

A header (a FlatBuffer) lists the sections: weights as .tflite, a tokenizer and metadata, which hold
the chat template. The format is described at https://github.com/google-ai-edge/LiteRT-LM; the
header is checked in full before LiteRT-LM, which believes it, sees the file.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError

from ml.internal import litertlm_pb2
from shared.errors import InvalidModelError
from shared.files.limits import JSON_BYTES, VOCABULARY_BYTES
from text_svc.formats.flatbuffer import BrokenBufferError, Table
from text_svc.formats.json_files import GENERATION_CONFIG, TOKENIZER

SUFFIX = ".litertlm"
MAGIC = b"LITERTLM"
TEMPLATE = "chat_template.jinja"
# The folder of the parts that `unpack` writes, in a process's scratch folder.
UNPACKED = "unpacked"
# The header of a published file has some kilobytes and about 15 sections.
MAX_HEADER_BYTES = 1 << 20
MAX_SECTIONS = 256
# After the magic: three numbers of the version, padding, and where the header ends.
_HEADER_END_AT = 24
_HEADER_AT = 32
# Kinds of sections that are read here.
TFLITE, TFLITE_WEIGHTS = 3, 7
SENTENCEPIECE, HF_TOKENIZER = 4, 6
METADATA = 5
# How the metadata say that the likeliest token is taken, see litertlm.proto.
_GREEDY = 3


@dataclass(frozen=True)
class Section:
    """A part of the file: its kind, its first byte, and the byte after its last."""

    kind: int
    begin: int
    end: int


@dataclass(frozen=True)
class LiteRtLmFile:
    """What the header of a file says.

    Attributes:
        version: of the format, such as "1.7.0".
    """

    path: Path
    version: str
    sections: tuple[Section, ...]

    def metadata(self, max_bytes: int = JSON_BYTES) -> litertlm_pb2.LlmMetadata:
        """The metadata of the language model.

        Raises:
            InvalidModelError: there are none, or they are broken or too large.
        """
        data = self._read(METADATA, "the metadata of a language model", max_bytes)
        if data is None:
            raise self._broken("it has no metadata of a language model")
        try:
            return litertlm_pb2.LlmMetadata.FromString(data)
        except DecodeError:
            raise self._broken("its metadata cannot be read") from None

    def unpack(
        self, folder: Path, json_bytes: int = JSON_BYTES, vocabulary_bytes: int = VOCABULARY_BYTES
    ) -> None:
        """Writes tokenizer.json, the chat template and generation_config.json, as far as it has
        them.

        Args:
            folder: made if it is not there.
            json_bytes: of the metadata, at most.
            vocabulary_bytes: of the tokenizer, at most.

        Raises:
            InvalidModelError: one of them is broken or too large.
        """
        folder.mkdir(parents=True, exist_ok=True)
        metadata = self.metadata(json_bytes)
        if template := chat_template_of(metadata):
            (folder / TEMPLATE).write_text(template)
        config = generation_config_of(metadata)
        (folder / GENERATION_CONFIG).write_text(json.dumps(config))
        packed = self._read(HF_TOKENIZER, TOKENIZER, vocabulary_bytes)
        if packed is not None:
            (folder / TOKENIZER).write_bytes(self._inflated(packed, vocabulary_bytes))
        elif self._read(SENTENCEPIECE, "its tokenizer", vocabulary_bytes) is None:
            raise self._broken("it has no tokenizer")

    def _read(self, kind: int, what: str, max_bytes: int) -> bytes | None:
        section = next((each for each in self.sections if each.kind == kind), None)
        if section is None:
            return None
        size = section.end - section.begin
        if size > max_bytes:
            raise self._broken(f"{what} has {size} bytes; the limit is {max_bytes}")
        with self.path.open("rb") as file:
            file.seek(section.begin)
            return file.read(size)

    def _inflated(self, packed: bytes, max_bytes: int) -> bytes:
        """A tokenizer.json: its size (8 bytes), and then it, compressed by zlib."""
        size = int.from_bytes(packed[:8], "little")
        if size > max_bytes:
            raise self._broken(f"{TOKENIZER} has {size} bytes; the limit is {max_bytes}")
        unpacker = zlib.decompressobj()
        try:
            content = unpacker.decompress(packed[8:], size + 1)
        except zlib.error:
            raise self._broken(f"{TOKENIZER} cannot be unpacked") from None
        if len(content) != size:
            raise self._broken(f"{TOKENIZER} has other bytes than its size says")
        return content

    def _broken(self, why: str) -> InvalidModelError:
        return InvalidModelError(f"{self.path.name} is not valid: {why}")


def read_litertlm(path: Path) -> LiteRtLmFile:
    """Reads and checks the header of a file.

    Raises:
        InvalidModelError: it is not a .litertlm file, or a section does not lie inside of it.
    """
    try:
        with path.open("rb") as file:
            return _read_header(path, file)
    except BrokenBufferError as error:
        raise InvalidModelError(f"{path.name} is not a {SUFFIX} file: {error}") from None


def _read_header(path: Path, file: BinaryIO) -> LiteRtLmFile:
    size = path.stat().st_size
    start = file.read(_HEADER_AT)
    if len(start) < _HEADER_AT or not start.startswith(MAGIC):
        raise BrokenBufferError(f"it does not begin with {MAGIC.decode()}")
    version = ".".join(map(str, struct.unpack_from("<III", start, len(MAGIC))))
    (end,) = struct.unpack_from("<Q", start, _HEADER_END_AT)
    header_bytes = end - _HEADER_AT
    if not 0 < header_bytes <= MAX_HEADER_BYTES or end > size:
        raise BrokenBufferError(
            f"its header has {header_bytes} bytes; the limit is {MAX_HEADER_BYTES}, and the file "
            f"has {size}"
        )
    listed = Table.root(file.read(header_bytes)).table(1)
    objects = listed.tables(0) if listed else []
    if not 0 < len(objects) <= MAX_SECTIONS:
        raise BrokenBufferError(f"it has {len(objects)} sections; it must be 1 to {MAX_SECTIONS}")
    sections = tuple(
        Section(each.number(3, "<B"), each.number(1, "<Q"), each.number(2, "<Q"))
        for each in objects
    )
    for index, section in enumerate(sections):
        if not end <= section.begin <= section.end <= size:
            raise BrokenBufferError(
                f"section {index} is from byte {section.begin} to {section.end}, and the file has "
                f"{size}"
            )
    if not any(each.kind in (TFLITE, TFLITE_WEIGHTS) for each in sections):
        raise BrokenBufferError("it has no weights")
    return LiteRtLmFile(path, version, sections)


def chat_template_of(metadata: litertlm_pb2.LlmMetadata) -> str:
    """The chat template: the file's own, or one that puts its affixes around each message; empty
    if it has neither."""
    if metadata.jinja_prompt_template:
        return metadata.jinja_prompt_template
    if not metadata.HasField("prompt_templates"):
        return ""
    affixes = metadata.prompt_templates
    roles = (("user", affixes.user), ("assistant", affixes.model), ("system", affixes.system))
    branches = "".join(
        f"{{% {'elif' if index else 'if'} message['role'] == {json.dumps(role)} %}}"
        f"{{{{ {_literal(affix.prefix)} + message['content'] + {_literal(affix.suffix)} }}}}"
        for index, (role, affix) in enumerate(roles)
    )
    return (
        f"{{% for message in messages %}}{branches}{{% endif %}}{{% endfor %}}"
        f"{{{{ {_literal(affixes.model.prefix)} }}}}"
    )


def _literal(text: str) -> str:
    """A text as Jinja writes it."""
    return json.dumps(text, ensure_ascii=False)


def generation_config_of(metadata: litertlm_pb2.LlmMetadata) -> dict[str, float]:
    """The defaults of sampling, by the names of generation_config.json."""
    if not metadata.HasField("sampler_params") or not metadata.sampler_params.type:
        return {}
    sampling = metadata.sampler_params
    if sampling.type == _GREEDY:
        return {"temperature": 0.0}
    values = {"temperature": sampling.temperature, "top_p": sampling.p, "top_k": sampling.k}
    return {name: value for name, value in values.items() if value > 0}
