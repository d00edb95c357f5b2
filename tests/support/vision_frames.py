"""Frames in every format, each with the pixels that another decoder finds in it."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import av
import cv2
import numpy as np
from PIL import Image

from ml import mediapipe_pb2 as pb

STEP_MS = 33
_OPENCV = {
    "bgr": (cv2.COLOR_RGB2BGR, cv2.COLOR_BGR2RGB),
    "rgba": (cv2.COLOR_RGB2RGBA, cv2.COLOR_RGBA2RGB),
    "bgra": (cv2.COLOR_RGB2BGRA, cv2.COLOR_BGRA2RGB),
    "gray": (cv2.COLOR_RGB2GRAY, cv2.COLOR_GRAY2RGB),
    "yuv420": (cv2.COLOR_RGB2YUV_I420, cv2.COLOR_YUV2RGB_I420),
}
_ENCODERS = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp8": "libvpx"}
_ENCODER_OPTIONS = {
    "h264": {"crf": "18"},
    "hevc": {"crf": "18", "x265-params": "log-level=none"},
    "av1": {"preset": "10", "crf": "20"},
    "vp8": {"deadline": "realtime"},
}
_DECODERS = {"av1": "libdav1d"}  # FFmpeg's own decodes in hardware alone
STILLS = ("rgb", *_OPENCV, "nv12", "jpeg", "png", "webp")
VIDEOS = ("h264", "hevc", "av1", "vp8")
FORMATS = (*STILLS, *VIDEOS)


def _nv12(image: np.ndarray) -> bytes:
    height, width = image.shape[:2]
    planar = cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420).reshape(-1)
    luma, chroma = planar[: width * height], planar[width * height :].reshape(2, -1)
    return luma.tobytes() + chroma.T.tobytes()


def encode_still(image: np.ndarray, name: str) -> tuple[bytes, np.ndarray]:
    """One picture: its bytes, and its pixels after the loss of the format."""
    if name == "rgb":
        return image.tobytes(), image
    if name in _OPENCV:
        there, back = _OPENCV[name]
        coded = cv2.cvtColor(image, there)
        return coded.tobytes(), cv2.cvtColor(coded, back)
    if name == "nv12":
        planar = cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420)
        return _nv12(image), cv2.cvtColor(planar, cv2.COLOR_YUV2RGB_I420)
    file = io.BytesIO()
    Image.fromarray(image).save(file, name, **({"quality": 90} if name != "png" else {}))
    return file.getvalue(), np.asarray(Image.open(file).convert("RGB"))


@contextlib.contextmanager
def usual_scheduling() -> Iterator[None]:
    """Undoes what SVT-AV1 does where it may, as root: it gives the thread that calls it, and thus
    whatever that starts later, the priority of real time.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


@usual_scheduling()
def encode_video(
    images: Sequence[np.ndarray], name: str, **options: str
) -> tuple[list[tuple[int, bytes]], list[np.ndarray]]:
    """A clip: (index of the picture, packet) in coded order, and the decoded pictures."""
    codec = av.CodecContext.create(_ENCODERS[name], "w")
    codec.height, codec.width = images[0].shape[:2]
    codec.pix_fmt, codec.time_base = "yuv420p", Fraction(1, 30)
    codec.options = options or _ENCODER_OPTIONS[name]
    if name != "av1":  # SVT-AV1 takes either a rate or a quality
        codec.bit_rate = 4_000_000
    packets = []
    for number, image in enumerate([*images, None]):
        frame = None
        if image is not None:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts = number
        packets += [(packet.pts, bytes(packet)) for packet in codec.encode(frame)]
    decoder = av.CodecContext.create(_DECODERS.get(name, name), "r")
    frames = [f for _, data in packets for f in decoder.decode(av.Packet(data))]
    frames += decoder.decode(None)
    return packets, [frame.to_ndarray(format="rgb24") for frame in frames]


def encode_clip(
    images: Sequence[np.ndarray], name: str
) -> tuple[list[pb.VideoFrame], list[np.ndarray]]:
    """Messages in the order of sending, and pixels in the order of display."""
    height, width = images[0].shape[:2]
    if name in VIDEOS:
        packets, pixels = encode_video(images, name)
    else:
        coded = [encode_still(image, name) for image in images]
        packets = [(number, data) for number, (data, _) in enumerate(coded)]
        pixels = [after for _, after in coded]
    messages = [
        pb.VideoFrame(
            frame_data=data,
            format=name,
            width=width,
            height=height,
            timestamp_ms=1000 + STEP_MS * number,
            frame_number=number,
        )
        for number, data in packets
    ]
    return messages, pixels


def rgb_frames(images: Iterable[np.ndarray]) -> Iterator[pb.VideoFrame]:
    """Raw frames."""
    return iter(encode_clip(list(images), "rgb")[0])
