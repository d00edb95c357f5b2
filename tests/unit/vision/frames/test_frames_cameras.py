"""Pictures and streams as cameras, phones and browsers send them; the references are Pillow, OpenCV
and PyAV."""

from __future__ import annotations

import base64
import io
import struct
from typing import cast

import av
import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from shared.errors import InputTooLargeError, InvalidArgumentError, UndecodableImageError
from tests.support.vision_frames import encode_video, usual_scheduling
from vision_svc.frames.bitstreams import MAX_UNITS
from vision_svc.frames.decoder import FrameDecoder, decode_picture
from vision_svc.frames.types import DecodedFrame, EncodedFrame, Limits
from vision_svc.options import STREAM_OPTIONS, parse_options, split_options

PHOTO = cv2.GaussianBlur(
    np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8), (0, 0), 2
)
CLIP = [np.roll(PHOTO, 2 * step, 1) for step in range(12)]


def jpeg(*options: int) -> bytes:
    return cv2.imencode(".jpg", PHOTO, options)[1].tobytes()


def decode(data: bytes, name: str = "jpeg") -> np.ndarray:
    return decode_picture(EncodedFrame(data, name), Limits()).image


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


RESTARTS = jpeg(cv2.IMWRITE_JPEG_RST_INTERVAL, 1)


@pytest.mark.parametrize("padding", [b"\0", b"\0\0", b"\0" * 20, b"\x12\x34"])
@pytest.mark.parametrize("marker", [b"\xff\xd6", b"\xff\xd0"])
def test_extraneous_bytes_before_restart_markers(padding: bytes, marker: bytes) -> None:
    assert marker in RESTARTS
    padded = RESTARTS.replace(marker, padding + marker)
    assert np.array_equal(decode(padded), decode(RESTARTS))
    assert np.array_equal(decode(padded), by_pillow(padded))


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["no end", "an end"])
def test_a_picture_of_which_a_part_is_missing(end: bytes) -> None:
    whole = jpeg()
    with pytest.raises(UndecodableImageError):
        decode(whole[: len(whole) // 2] + end)


def test_a_photo_with_a_film_behind_it() -> None:
    photo = jpeg()
    film = np.random.default_rng(4).bytes(1 << 20) + b"\xff\xda" * 500
    assert np.array_equal(decode(photo + film), by_pillow(photo))


def test_scans_within_the_picture_are_limited() -> None:
    photo = jpeg()
    for scans in (b"\xff\xda" * 500, b"\xff\xda\0\x08" * 500):
        with pytest.raises(InputTooLargeError, match="exceeds the limit of 100"):
            decode(photo[:-2] + scans + b"\xff\xd9")


@pytest.mark.parametrize(
    "hiding",
    [
        b"\xff\xfe\0\x06ab\xff\xd9",  # a comment
        b"\xff\xda\0\x08\x01\xff\xd9\0\0\x10",  # a scan of a component 255
    ],
)
def test_bytes_like_the_end_within_a_segment_hide_no_scans(hiding: bytes) -> None:
    photo = jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    scan = photo[photo.rfind(b"\xff\xda") : -2]
    with pytest.raises(InputTooLargeError, match="exceeds the limit of 100"):
        decode(photo[:-2] + hiding + scan * 200 + b"\xff\xd9")


def test_an_unknown_marker_hides_no_scans() -> None:
    photo = jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    scan = photo[photo.rfind(b"\xff\xda") : -2]
    # Within a scan libjpeg reads on right behind it.
    with pytest.raises(InputTooLargeError, match="exceeds the limit of 100"):
        decode(photo[:-2] + b"\xff\x02\xff\xff" + scan * 200 + b"\xff\xd9")


def test_a_progressive_picture() -> None:
    photo = jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert photo.count(b"\xff\xda") > 5
    film = b"\xff\xda" * 500
    assert np.array_equal(decode(photo + film), by_pillow(photo))


def exif(order: str, kind: int, orientation: int) -> bytes:
    """An Exif block with one other entry before the orientation."""
    formats = {1: "Bxxx", 3: "Hxx", 4: "I", 8: "hxx", 9: "i"}
    value = struct.pack(order + formats[kind], orientation)
    mark = {"<": b"II", ">": b"MM"}[order]
    entries = struct.pack(order + "HHII", 0x0100, 4, 1, 64)
    entries += struct.pack(order + "HHI", 0x0112, kind, 1) + value
    tiff = mark + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", 2) + entries
    return b"Exif\0\0" + tiff + b"\0\0\0\0"


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", [1, 3, 4, 8, 9])
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientations(order: str, kind: int, orientation: int) -> None:
    """Stored as a number of any kind; the reference turns those that are a SHORT."""
    photo = jpeg()
    head, rest = photo[:2], photo[2:]
    turned = head + segment(0xE1, exif(order, kind, orientation)) + rest
    reference = head + segment(0xE1, exif(order, 3, orientation)) + rest
    assert np.array_equal(decode(turned), by_pillow(reference))


@pytest.mark.parametrize(
    "before",
    [
        segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
        segment(0xFE, b"a comment \xff\xe1\0\4 with markers \xff\xda in it"),
        segment(0xE2, b"MPF\0" + bytes(300)) + segment(0xED, b"Photoshop 3.0\0"),
        b"\xff\xff\xff",
        b"\xff\x01",
    ],
    ids=["jfif", "xmp", "comment", "mpf", "fill bytes", "a lone marker"],
)
def test_exif_where_cameras_put_it(before: bytes) -> None:
    photo = jpeg()
    turned = photo[:2] + before + segment(0xE1, exif(">", 3, 6)) + photo[2:]
    assert decode(turned).shape == (64, 48, 3)
    assert np.array_equal(decode(turned), np.rot90(decode(photo), -1))


@pytest.mark.parametrize("body", [b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0"])
def test_exif_that_leads_nowhere(body: bytes) -> None:
    photo = jpeg()
    odd = photo[:2] + segment(0xE1, b"Exif\0\0" + body) + photo[2:]
    assert np.array_equal(decode(odd), decode(photo))


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        *[("image/jpeg", "jpeg"), ("JPG", "jpeg"), ("mjpeg", "jpeg"), ("MJPG", "jpeg")],
        *[("image/png", "png"), ("image/webp", "webp")],
        *[("rgb24", "rgb"), ("bgr24", "bgr"), ("yuv420p", "yuv420"), ("I420", "yuv420")],
        *[("gray8", "gray"), ("mono8", "gray"), ("raw", "rgb")],
    ],
)
def test_other_names_of_formats(alias: str, name: str) -> None:
    if name in ("jpeg", "png", "webp"):
        data = cv2.imencode("." + name, PHOTO)[1].tobytes()
    else:
        data = np.random.default_rng(5).bytes(3 * 64 * 48)
        data = data[: {"gray": 64 * 48, "yuv420": 64 * 48 * 3 // 2}.get(name, len(data))]
    pictures = [
        decode_picture(EncodedFrame(data, each, 64, 48), Limits()).image for each in (alias, name)
    ]
    assert np.array_equal(*pictures)


def pictures(datas: list[bytes], name: str, extradata: bytes = b"") -> list[np.ndarray]:
    decoder = FrameDecoder(Limits(), extradata=extradata)
    outcomes = [
        each
        for number, data in enumerate(datas)
        for each in decoder.decode(EncodedFrame(data, name, number=number))
    ]
    outcomes += decoder.flush()
    assert all(isinstance(each, DecodedFrame) for each in outcomes)
    return [each.image for each in cast("list[DecodedFrame]", outcomes)]


@usual_scheduling()
def in_mp4(name: str) -> tuple[list[bytes], bytes, list[np.ndarray]]:
    """The packets, the extradata and the pictures of a clip that FFmpeg has put into an MP4."""
    file = io.BytesIO()
    encoder = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1"}[name]
    with av.open(file, "w", "mp4") as output:
        stream = output.add_stream(encoder, 30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in CLIP:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as source:
        track = source.streams.video[0]
        extradata = bytes(track.codec_context.extradata)
        packets = [bytes(packet) for packet in source.demux(track) if packet.size]
    file.seek(0)
    with av.open(file) as source:
        if name == "av1":
            decoder = av.CodecContext.create("libdav1d", "r")
            frames = [f for data in packets for f in decoder.decode(av.Packet(data))]
            frames += decoder.decode(None)
        else:
            frames = list(source.decode(video=0))
        return packets, extradata, [frame.to_ndarray(format="rgb24") for frame in frames]


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        *[("h264", "avc1"), ("h264", "h264"), ("h264", "avc1.64001F"), ("h264", "avc")],
        *[("hevc", "hvc1"), ("hevc", "hevc"), ("hevc", "h265"), ("av1", "av01"), ("av1", "av1")],
    ],
)
def test_video_as_it_stands_in_mp4(name: str, alias: str) -> None:
    packets, extradata, expected = in_mp4(name)
    if name != "av1":
        assert not packets[0].startswith((b"\0\0\1", b"\0\0\0\1"))
    for text in (extradata.hex(), base64.b64encode(extradata).decode()):
        known = parse_options(STREAM_OPTIONS, {"extradata": text})
        _, options = split_options(known)
        assert options.extradata == extradata
        got = pictures(packets, alias, options.extradata)
        assert len(got) == len(CLIP)
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_lengths_that_are_told_by_the_first_bytes() -> None:
    """Parameter sets within the stream, and lengths that look like start codes."""
    datas = [d for _, d in encode_video(CLIP, "h264", tune="zerolatency")[0]]
    prefixed = []
    for data in datas:
        units = [u for u in data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if u]
        prefixed.append(b"".join(len(unit).to_bytes(4, "big") + unit for unit in units))
    assert any(data.startswith(b"\0\0\1") for data in prefixed[1:])
    expected = pictures(datas, "h264")
    for name in ("h264", "avc1"):
        got = pictures(prefixed, name)
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    # Annex B under the other name, as WebCodecs has it.
    assert all(np.array_equal(a, b) for a, b in zip(pictures(datas, "avc1"), expected, strict=True))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_lengths_of_other_sizes(size: int) -> None:
    small = [np.full((16, 16, 3), shade, np.uint8) for shade in (40, 90)]
    datas = [d for _, d in encode_video(small, "h264", tune="zerolatency")[0]]
    units = [
        [u for u in data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if u and u[0] != 6]
        for data in datas
    ]
    sps, pps = units[0][:2]
    record = b"\1" + sps[1:4] + bytes([0xFC | size - 1, 0xE1]) + len(sps).to_bytes(2, "big") + sps
    record += b"\1" + len(pps).to_bytes(2, "big") + pps
    sent = [b"".join(len(u).to_bytes(size, "big") + u for u in each[-1:]) for each in units]
    assert len(pictures(sent, "avc1", record)) == 2


@pytest.mark.parametrize("name", ["h264", "hevc"])
@pytest.mark.parametrize(
    "record",
    [b"\1", b"\2" + bytes(40), b"\1" + b"\xff" * 40, b"\1\x64\0\x1f\xff\xe1\xff\xff12", b"\0"],
)
def test_extradata_that_cannot_be_read(name: str, record: bytes) -> None:
    decoder = FrameDecoder(Limits(), extradata=record)
    with pytest.raises(InvalidArgumentError, match="extradata is no configuration record"):
        list(decoder.decode(EncodedFrame(b"\0\0\0\1\x65", name)))


def test_what_is_no_h264_is_refused_with_the_reason() -> None:
    with pytest.raises(UndecodableImageError, match=r"no Annex B start code \(00 00 01\)"):
        list(FrameDecoder(Limits()).decode(EncodedFrame(b"something else", "h264")))
    packets, extradata, _ = in_mp4("h264")
    decoder = FrameDecoder(Limits(), extradata=extradata)
    with pytest.raises(UndecodableImageError, match="lengths of its NAL units do not fit"):
        list(decoder.decode(EncodedFrame(packets[0][:-1], "h264")))


@pytest.mark.parametrize("data", [b"\0\0\1\x09" * (MAX_UNITS + 1), b"\0\0\0\1\x09" * (1 << 20)])
def test_endless_units(data: bytes) -> None:
    with pytest.raises(UndecodableImageError, match=f"more than {MAX_UNITS} NAL units"):
        list(FrameDecoder(Limits()).decode(EncodedFrame(data, "h264")))


@pytest.mark.parametrize("data", [b"\x12", b"\x0a\x80" * 9, b"\xff\xff", b"\x0a\x7f12", b"\x08"])
def test_what_is_no_av1_is_refused(data: bytes) -> None:
    with pytest.raises(UndecodableImageError):
        list(FrameDecoder(Limits()).decode(EncodedFrame(data, "av1")))
