"""Reads sound files. FFmpeg's demuxers tell what a file is, and only those named here are used.

Some demuxers open what a file names: playlists, concatenations, streams over the network. Some are
of pictures and subtitles, and most are of formats that nobody uses. So the file's demuxer and its
decoder must be on a list, and FFmpeg may open no file and no address.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import av
from av.stream import Discard

from shared.errors import InvalidArgumentError, OutOfRangeError

# Samples a second, and channels.
RATES = range(1000, 384_001)
MAX_CHANNELS = 64

# Kinds of files as people call them, with FFmpeg's names of their demuxers.
CONTAINERS = {
    "WAV": ("wav", "w64"),
    "FLAC": ("flac",),
    "MP3": ("mp3",),
    "Ogg": ("ogg",),
    "MP4": ("mov", "mp4", "m4a", "3gp"),
    "AAC": ("aac", "loas"),
    "Matroska": ("matroska",),
    "WebM": ("webm",),
    "WMA": ("asf",),
    "AIFF": ("aiff",),
    "CAF": ("caf",),
    "AU": ("au",),
    "AMR": ("amr",),
    "AC-3": ("ac3", "eac3"),
    "WavPack": ("wv",),
    "AVI": ("avi",),
    "FLV": ("flv",),
    "MPEG": ("mpeg", "mpegts"),
}
# FFmpeg's names of the decoders. Those of video are not among them: none is ever opened.
CODECS = frozenset(
    (
        *("aac", "aac_latm", "ac3", "eac3", "alac", "amrnb", "amrwb", "dca", "flac", "g722"),
        *("gsm", "gsm_ms", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "nellymoser"),
        *("opus", "speex", "truespeech", "vorbis", "wavpack"),
        *("wmav1", "wmav2", "wmapro", "wmalossless", "wmavoice"),
        *("adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "adpcm_swf", "adpcm_yamaha"),
        *("g726", "g726le", "pcm_alaw", "pcm_mulaw", "pcm_s8", "pcm_u8"),
        *("pcm_s16be", "pcm_s16le", "pcm_s24be", "pcm_s24le", "pcm_s32be", "pcm_s32le"),
        *("pcm_f32be", "pcm_f32le", "pcm_f64be", "pcm_f64le"),
    )
)
# Samples of one packet, each channel; the codecs above need at most 131,072 (WavPack), while a
# wrong header of others asks for gigabytes.
_MAX_PACKET_SAMPLES = 1 << 18
# Packets without a sample that a file may have more than packets with some: a stream begins with
# some such, and one that was cut off or damaged has some; a file that is nothing else is no sound.
_MAX_EMPTY_PACKETS = 64
# Samples that are resampled at once. At the lowest rate, of the most channels, and for the highest
# rate that a model has, they become 200 MB.
_FRAME_SAMPLES = 1 << 14

_OPTIONS = {
    "format_whitelist": ",".join(name for names in CONTAINERS.values() for name in names),
    "codec_whitelist": ",".join(sorted(CODECS)),
    "protocol_whitelist": "none",
    "max_samples": str(_MAX_PACKET_SAMPLES),
}


def read_frames(data: bytes, field: str, raw: Iterable[str]) -> Iterator[av.AudioFrame]:
    """The first sound of a file, decoded. Pictures and video beside it are not.

    Packets that are damaged are left out, as players do; so a file that was cut off gives what is
    there.

    Args:
        data: the file.
        field: the name of the `AudioData` in the request.
        raw: formats of raw samples, for the message to a caller who has sent them as a file.

    Raises:
        InvalidArgumentError: it is not a sound file of `CONTAINERS`, or cannot be decoded.
        OutOfRangeError: its rate or its channels are out of range.
    """
    try:
        file = av.open(io.BytesIO(data), "r", options=_OPTIONS, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        *names, last = CONTAINERS
        raise InvalidArgumentError(
            f"{field}.data is not a {', '.join(names)} or {last} file, or its beginning is "
            f"damaged; for raw samples set {field}.format to one of {', '.join(raw)}",
            field=f"{field}.data",
        ) from error
    with file:
        stream = _sound(file)
        if stream is None:
            raise undecodable(len(data), field)
        for other in file.streams:
            if other is not stream:
                other.discard = Discard.all
        stream.codec_context.options = {"max_samples": str(_MAX_PACKET_SAMPLES)}
        for frame in _decoded(file, stream, len(data), field):
            _check(frame, field)
            yield from in_parts(frame)


def undecodable(size: int, field: str) -> InvalidArgumentError:
    """The error for bytes without a sound that can be decoded."""
    return InvalidArgumentError(
        f"the {size} bytes of {field}.data cannot be decoded as sound", field=f"{field}.data"
    )


def _sound(file: av.container.InputContainer) -> av.AudioStream | None:
    """The first sound with a decoder: beside it, telephones store one that only they can decode."""
    for stream in file.streams.audio:
        if stream.codec_context is not None and stream.codec_context.codec.name in CODECS:
            return stream
    return None


def _decoded(
    file: av.container.InputContainer, stream: av.AudioStream, size: int, field: str
) -> Iterator[av.AudioFrame]:
    empty = 0
    packets = file.demux(stream)
    while True:
        frames: list[av.AudioFrame] = []
        try:
            packet = next(packets, None)
        except av.FFmpegError:  # the file ends in the middle of something
            packet = None
        try:
            frames = stream.decode(packet)
        except (av.InvalidDataError, av.ArgumentError):
            pass
        except EOFError:  # its decoder has been flushed
            return
        yield from frames
        if packet is None:
            return
        empty += -1 if frames else 1
        if empty > _MAX_EMPTY_PACKETS:
            raise undecodable(size, field)


def _check(frame: av.AudioFrame, field: str) -> None:
    if frame.sample_rate not in RATES:
        raise OutOfRangeError(
            f"the sound of {field}.data has {frame.sample_rate} samples a second; there must be "
            f"from {RATES[0]} to {RATES[-1]}",
            field=f"{field}.data",
        )
    if frame.layout.nb_channels > MAX_CHANNELS:
        raise OutOfRangeError(
            f"the sound of {field}.data has {frame.layout.nb_channels} channels; there may be "
            f"{MAX_CHANNELS}",
            field=f"{field}.data",
        )


def in_parts(frame: av.AudioFrame) -> Iterator[av.AudioFrame]:
    """A frame as it is, or parts of one that is long."""
    frame.pts = None
    if frame.samples <= _FRAME_SAMPLES:
        yield frame
        return
    fifo = av.AudioFifo()
    fifo.write(frame)
    while part := fifo.read(_FRAME_SAMPLES, partial=True):
        yield part
