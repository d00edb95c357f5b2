"""What the bytes of compressed video say, without decoding: framing, kinds of frames, key frames.

H.264 and HEVC are sequences of NAL units. In Annex B a start code precedes each unit; in MP4, and
from many encoders of phones and browsers, the unit's length does ("avc1", "hvc1"), and the
parameter sets are in a record beside the stream, which WebCodecs calls `description` and FFmpeg
`extradata` (ISO/IEC 14496-15). Everything here comes from strangers: each length is checked.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vision_svc.frames.headers import VP8_START_CODE, vp8_key_frame_size
from vision_svc.frames.types import Limits

# NAL units or OBUs of one frame that are looked at; pictures of 8K have some hundred slices.
MAX_UNITS = 4096
# Parameter sets beside a stream or before a picture; real ones take some hundred bytes.
MAX_HEADER_BYTES = 64 << 10
START_CODE = b"\0\0\1"
_LONG_START_CODE = b"\0\0\0\1"
_NAL_START = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)


class FrameKind(enum.Enum):
    """What a video frame contains."""

    KEY = "a picture that needs no other one"
    PICTURE = "a picture to show"
    HIDDEN = "a picture that only later frames need"
    HEADERS = "parameter sets for the next picture"


Inspect = Callable[[bytes, Limits], FrameKind]


def inspect_h264(data: bytes, _limits: Limits) -> FrameKind:
    """Looks for the first slice among the NAL units of an access unit (H.264, table 7-1).

    Raises:
        ValueError: the data is not Annex B.
    """
    for header in _unit_headers(data):
        unit = header & 0x1F
        if unit == 5:
            return FrameKind.KEY
        if 1 <= unit <= 4:
            return FrameKind.PICTURE
    return FrameKind.HEADERS


def inspect_hevc(data: bytes, _limits: Limits) -> FrameKind:
    """Looks for the first slice among the NAL units of an access unit (H.265, table 7-1).

    Raises:
        ValueError: the data is not Annex B.
    """
    for header in _unit_headers(data):
        unit = header >> 1 & 0x3F
        if 16 <= unit <= 23:
            return FrameKind.KEY
        if unit < 32:
            return FrameKind.PICTURE
    return FrameKind.HEADERS


def _unit_headers(data: bytes) -> Iterator[int]:
    """The first byte of each NAL unit."""
    count = 0
    for match in _NAL_START.finditer(data):
        count += 1
        if count > MAX_UNITS:
            raise ValueError(f"it has more than {MAX_UNITS} NAL units")
        yield match[1][0]
    if not count:
        raise ValueError(
            "it has no Annex B start code (00 00 01), and is no sequence of NAL units with their "
            "lengths (avc1, hvc1)"
        )


def inspect_vp8(data: bytes, limits: Limits) -> FrameKind:
    """Reads the frame tag (RFC 6386, 9.1).

    Raises:
        ValueError: the data is too short, or it is a key frame without its start code.
        InputTooLargeError: the size in a key frame exceeds a limit.
    """
    if len(data) < 3:
        raise ValueError("a VP8 frame has at least three bytes")
    is_key = not data[0] & 1
    if is_key and (data[3:6] != VP8_START_CODE or len(data) < 10):
        raise ValueError("its key frame has no start code (9d 01 2a)")
    if is_key:
        limits.check(*vp8_key_frame_size(data))
    first_partition = int.from_bytes(data[:3], "little") >> 5
    if first_partition > len(data) - (10 if is_key else 3):
        raise ValueError(f"its first partition of {first_partition} bytes is not there whole")
    if not data[0] >> 4 & 1:
        return FrameKind.HIDDEN
    return FrameKind.KEY if is_key else FrameKind.PICTURE


_FRAME_OBUS = frozenset({3, 6, 7})  # a frame's header, a whole frame, a repeated header


def inspect_av1(data: bytes, _limits: Limits) -> FrameKind:
    """Walks the OBUs of a temporal unit to its first frame (AV1, 5.3, 5.9.2 and 6.2.2).

    Raises:
        ValueError: the data is not a sequence of OBUs with their sizes.
    """
    position, kind = 0, FrameKind.HEADERS
    for _ in range(MAX_UNITS):
        if position >= len(data):
            break
        header = data[position]
        if header & 0x81 or not header & 2:  # forbidden or reserved bits, or no size
            raise ValueError("it is no sequence of OBUs with their sizes")
        size, begin = _leb128(data, position + (2 if header & 4 else 1))
        position = begin + size
        if kind is FrameKind.HEADERS and size and header >> 3 & 15 in _FRAME_OBUS:
            # It begins with show_existing_frame, and two bits of the frame's type: key is 0.
            kind = (
                FrameKind.KEY
                if position <= len(data) and not data[begin] >> 5
                else FrameKind.PICTURE
            )
    if position != len(data):
        raise ValueError("its OBUs do not end where their sizes say")
    return kind


def _leb128(data: bytes, position: int) -> tuple[int, int]:
    """A number of up to 8 bytes, the least significant first, and where it ends (AV1, 4.10.5)."""
    value = 0
    for index, byte in enumerate(data[position : position + 8]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("the size of an OBU does not end")


@dataclass(frozen=True)
class Description:
    """What the record beside a stream says.

    Attributes:
        headers: its parameter sets, as they stand in a frame: Annex B, or OBUs.
        length_size: bytes of the length before each NAL unit; 0 is Annex B, or not NAL units.
    """

    headers: bytes
    length_size: int


def read_description(name: str, record: bytes) -> Description:
    """Reads `extradata`: a configuration record, or parameter sets as they stand in a frame.

    Args:
        name: the format, such as "h264".
        record: an AVCDecoderConfigurationRecord, an HEVCDecoderConfigurationRecord, an
            AV1CodecConfigurationRecord, or Annex B.

    Raises:
        ValueError: it is none of these.
    """
    if record.startswith((START_CODE, _LONG_START_CODE)) and name in _RECORDS:
        return Description(record, 0)
    try:
        if name in _RECORDS:
            if record[:1] != b"\1":
                raise ValueError("its version is not 1")
            return _RECORDS[name](record)
        if name == "av1" and record[:1] == b"\x81":
            return Description(record[4:], 0)
    except (IndexError, struct.error):
        raise ValueError("it ends too early") from None
    raise ValueError(f"{name} has no such record")


def _avc_record(record: bytes) -> Description:
    """ISO/IEC 14496-15, 5.3.3.1."""
    units, position = [], 5
    for mask in (0x1F, 0xFF):  # sequence parameter sets, picture parameter sets
        count = record[position] & mask
        found, position = _sized_units(record, position + 1, count)
        units += found
    return Description(_joined(units), (record[4] & 3) + 1)


def _hevc_record(record: bytes) -> Description:
    """ISO/IEC 14496-15, 8.3.3.1."""
    units, position = [], 23
    for _ in range(record[22]):
        (count,) = struct.unpack_from(">H", record, position + 1)
        found, position = _sized_units(record, position + 3, count)
        units += found
    return Description(_joined(units), (record[21] & 3) + 1)


_RECORDS = {"h264": _avc_record, "hevc": _hevc_record}


def _sized_units(record: bytes, position: int, count: int) -> tuple[list[bytes], int]:
    units = []
    for _ in range(count):
        (size,) = struct.unpack_from(">H", record, position)
        unit = record[position + 2 : position + 2 + size]
        if len(unit) < size or not unit:
            raise ValueError("one of its parameter sets is not there whole")
        units.append(unit)
        position += 2 + size
    return units, position


def is_length_prefixed(data: bytes) -> bool:
    """Whether the data is a sequence of NAL units, each after its length in four bytes.

    Data that begins like Annex B can be that, too: a unit of 256 to 511 bytes has the length
    00 00 01 xx. Then all lengths must fit, which they do not in Annex B.
    """
    try:
        return bool(_split(data, 4))
    except ValueError:
        return False


def to_annex_b(data: bytes, length_size: int) -> bytes:
    """NAL units with their lengths, as Annex B.

    Raises:
        ValueError: a length leads out of the data, or there are more than `MAX_UNITS`.
    """
    return _joined(_split(data, length_size))


def _split(data: bytes, length_size: int) -> list[bytes]:
    units: list[bytes] = []
    position = 0
    while position < len(data):
        begin = position + length_size
        size = int.from_bytes(data[position:begin], "big")
        position = begin + size
        if not size or position > len(data) or data[begin] & 0x80:
            raise ValueError("the lengths of its NAL units do not fit")
        if len(units) == MAX_UNITS:
            raise ValueError(f"it has more than {MAX_UNITS} NAL units")
        units.append(data[begin:position])
    return units


def _joined(units: list[bytes]) -> bytes:
    return b"".join(part for unit in units for part in (_LONG_START_CODE, unit))
