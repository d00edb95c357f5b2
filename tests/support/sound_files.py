"""Sound files of every kind, written by FFmpeg."""

from __future__ import annotations

import io
from collections.abc import Mapping

import av
import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]


def chirp(rate: int, seconds: float = 2.0) -> Samples:
    """A tone that rises, so that each moment of it differs from all others."""
    time = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 * time + 400 * time**2))).astype(np.float32)


def encode(
    samples: Samples,
    rate: int,
    container: str,
    codec: str,
    *,
    video: str = "",
    options: Mapping[str, str] | None = None,
    bit_rate: int = 0,
) -> bytes:
    """A file of a sound.

    Args:
        samples: of shape (samples,) or (samples, 2).
        rate: of the samples and of the file.
        container: FFmpeg's name of its muxer.
        codec: FFmpeg's name of its encoder.
        video: the encoder of a short video, whose stream comes before that of the sound.
        options: of the muxer and of the sound's encoder.
        bit_rate: of the sound; 0 is the encoder's own.
    """
    file = io.BytesIO()
    layout = "mono" if samples.ndim == 1 else "stereo"
    with av.open(file, "w", format=container, options=dict(options or {})) as writer:
        pictures = writer.add_stream(video, rate=25, width=64, height=64) if video else None
        sound = writer.add_stream(codec, rate=rate, layout=layout, options=dict(options or {}))
        context = sound.codec_context
        context.format = context.codec.audio_formats[0]
        if bit_rate:
            context.bit_rate = bit_rate
        context.open()
        if pictures is not None:
            pictures.pix_fmt = pictures.codec_context.codec.video_formats[0].name
            picture = av.VideoFrame(64, 64, "yuv420p").reformat(format=pictures.pix_fmt)
            writer.mux(pictures.encode(picture))
            writer.mux(pictures.encode(None))
        for frame in _frames(samples, rate, layout, context):
            writer.mux(sound.encode(frame))
        writer.mux(sound.encode(None))
    return file.getvalue()


def _frames(
    samples: Samples, rate: int, layout: str, context: av.AudioCodecContext
) -> list[av.AudioFrame]:
    planes = np.ascontiguousarray(samples.reshape(len(samples), -1).T)
    whole = av.AudioFrame.from_ndarray(planes, "fltp", layout)
    whole.sample_rate = rate
    converter = av.AudioResampler(format=context.format, layout=layout, rate=rate)
    fifo = av.AudioFifo()
    for part in [*converter.resample(whole), *converter.resample(None)]:
        part.pts = None
        fifo.write(part)
    frames, at = [], 0
    while (frame := fifo.read(context.frame_size or 1024, partial=True)) is not None:
        frame.pts, at = at, at + frame.samples
        frames.append(frame)
    return frames
