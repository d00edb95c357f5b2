"""Sounds of every kind of file give the samples that were written, and other files do not."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest

from ml import transformers_pb2 as pb
from shared.errors import ServiceError
from tests.support.sound_files import Samples, chirp, encode
from text_svc.worker.media.decode import decode_audio
from text_svc.worker.media.sound_files import CONTAINERS

RATE = 16_000
RAW_MP3 = {"write_xing": "0", "id3v2_version": "0"}

# Muxer, encoder and rate; the samples that the codec puts before the sound and after it.
EXACT = [
    *[("wav", f"pcm_{kind}", RATE) for kind in ("s16le", "u8", "s24le", "s32le", "f32le")],
    *(("wav", "pcm_f64le", RATE), ("w64", "pcm_s16le", RATE), ("aiff", "pcm_s16be", RATE)),
    *(("wav", "pcm_alaw", 8000), ("wav", "pcm_mulaw", 8000), ("au", "pcm_s16be", RATE)),
    *(("caf", "pcm_s16be", RATE), ("flac", "flac", 44_100), ("ogg", "flac", RATE)),
    *(("mov", "pcm_s16le", RATE), ("mp4", "alac", RATE), ("wv", "wavpack", RATE)),
    *(("matroska", "pcm_s16le", RATE), ("matroska", "flac", 48_000)),
    *(("ogg", "libopus", 48_000), ("webm", "libopus", 48_000), ("matroska", "libopus", 48_000)),
    *(("mp3", "libmp3lame", RATE), ("mp3", "libmp3lame", 44_100)),
]
DELAYED = [
    *(("adts", "aac", RATE), ("latm", "aac", RATE), ("mpegts", "aac", RATE)),
    *(("mp4", "aac", RATE), ("ipod", "aac", 44_100), ("matroska", "aac", RATE)),
    *(("amr", "libopencore_amrnb", 8000), ("3gp", "libopencore_amrnb", 8000)),
    *(("ac3", "ac3", 48_000), ("eac3", "eac3", 48_000), ("mp2", "mp2", 44_100)),
    *(("asf", "wmav2", 44_100), ("asf", "wmav1", 44_100), ("avi", "libmp3lame", RATE)),
    *(("flv", "libmp3lame", 44_100), ("mpeg", "mp2", 48_000)),
    *(("wav", "adpcm_ms", RATE), ("wav", "adpcm_ima_wav", RATE)),
]


def encoded(sound: Samples, rate: int, container: str, codec: str) -> bytes:
    bit_rate = 64_000 if codec.startswith("wma") else 0  # these have none of their own
    return encode(sound, rate, container, codec, bit_rate=bit_rate)


def decoded(data: bytes, rate: int = RATE, max_seconds: float = 60) -> Samples:
    return decode_audio(pb.AudioData(data=data), rate, max_seconds)


def refusal(data: bytes) -> tuple[str, str]:
    with pytest.raises(ServiceError) as caught:
        decoded(data)
    return caught.value.reason, caught.value.message


def lag(samples: Samples, sound: Samples) -> tuple[int, float]:
    """After how many samples the sound begins, and how like it they are from there on."""
    size = 1 << 17
    spectrum = np.fft.rfft(samples, size) * np.conj(np.fft.rfft(sound, size))
    start = int(np.fft.irfft(spectrum, size).argmax())
    start -= size if start > size // 2 else 0
    heard, wanted = samples[max(start, 0) :], sound[max(-start, 0) :]
    both = min(len(heard), len(wanted))
    return start, float(np.corrcoef(heard[:both], wanted[:both])[0, 1])


@pytest.mark.parametrize(("container", "codec", "rate"), EXACT)
def test_a_sound_is_whole_and_begins_at_once(container: str, codec: str, rate: int) -> None:
    samples = decoded(encode(chirp(rate), rate, container, codec))
    start, likeness = lag(samples, chirp(RATE))
    assert abs(len(samples) - 2 * RATE) <= 2
    assert abs(start) <= 1
    assert likeness > 0.99


@pytest.mark.parametrize(("container", "codec", "rate"), DELAYED)
def test_a_sound_is_whole_but_for_the_delay_of_its_codec(
    container: str, codec: str, rate: int
) -> None:
    samples = decoded(encoded(chirp(rate), rate, container, codec))
    start, likeness = lag(samples, chirp(RATE))
    most = 2600 * RATE // rate  # of samples before a sound, and at its end
    assert abs(start) <= most
    assert 2 * RATE - 300 <= len(samples) <= 2 * RATE + 2 * most
    assert likeness > 0.9


# MPEG 1, 2 and 2.5; each has other first bytes.
@pytest.mark.parametrize(
    ("rate", "first"), [(44_100, "fffb"), (22_050, "fff3"), (8000, "ffe3"), (RATE, "fff3")]
)
def test_an_mp3_needs_no_tags(rate: int, first: str) -> None:
    data = encode(chirp(rate), rate, "mp3", "libmp3lame", options=RAW_MP3)
    assert data[:2].hex() == first
    start, likeness = lag(decoded(data), chirp(RATE))
    assert start <= 2600 * RATE // rate
    assert likeness > 0.99
    # From the middle of a frame, as a recording of a radio begins.
    assert len(decoded(data[len(data) // 2 + 5 :])) == pytest.approx(RATE, abs=4000)


@pytest.mark.parametrize(("rate", "first"), [(44_100, "fffa"), (22_050, "fff2"), (8000, "ffe2")])
def test_an_mp3_may_have_checksums(rate: int, first: str) -> None:
    data = with_checksums(rate)
    assert data[:2].hex() == first
    start, likeness = lag(decoded(data), chirp(RATE))
    assert start <= 2600 * RATE // rate
    assert likeness > 0.99


def with_checksums(rate: int) -> bytes:
    """An MP3 with the two bytes of a checksum after each header; there is room in its frames."""
    options = {**RAW_MP3, "reservoir": "0"}
    data = encode(chirp(rate), rate, "mp3", "libmp3lame", options=options, bit_rate=64_000)
    with av.open(io.BytesIO(data), format="mp3") as file:
        frames = [bytes(packet) for packet in file.demux() if packet.size]
    return b"".join(
        bytes([frame[0], frame[1] & 0xFE]) + frame[2:4] + b"\0\0" + frame[4:-2] for frame in frames
    )


def test_channels_become_their_mean() -> None:
    both = np.stack([chirp(RATE), 0 * chirp(RATE)], 1)
    for container, codec in (("wav", "pcm_s16le"), ("flac", "flac"), ("webm", "libopus")):
        rate = 48_000 if codec == "libopus" else RATE
        data = encode(np.stack([chirp(rate), 0 * chirp(rate)], 1), rate, container, codec)
        samples = decoded(data)
        assert len(samples) == len(both), container
        assert np.abs(samples - both.mean(1))[RATE // 2 : -RATE // 2].max() < 0.05, container


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "avi", "mpegts"])
def test_a_video_before_the_sound_does_not_matter(container: str) -> None:
    data = encode(chirp(RATE), RATE, container, "aac", video="mpeg4")
    assert lag(decoded(data), chirp(RATE))[1] > 0.99


def test_a_cover_of_an_album_does_not_matter() -> None:
    data = encode(chirp(RATE), RATE, "mp3", "libmp3lame", video="png")
    assert b"APIC" in data
    assert lag(decoded(data), chirp(RATE))[1] > 0.99


def test_a_recording_of_a_browser_has_no_duration() -> None:
    data = encode(chirp(48_000), 48_000, "webm", "libopus", options={"live": "1"})
    assert len(decoded(data)) == 2 * RATE
    # It stops in the middle, when the connection does.
    half = decoded(data[: len(data) // 2])
    assert len(half) == pytest.approx(RATE, abs=1000)
    assert lag(half, chirp(RATE))[0] in (0, 1)


def wav(samples: bytes, form: bytes, *, size: int | None = None, before: bytes = b"") -> bytes:
    """A WAV file with a `form` chunk of this content, and a data chunk that says it has `size`."""
    chunks = before + b"fmt " + struct.pack("<I", len(form)) + form
    data = b"data" + struct.pack("<I", len(samples) if size is None else size) + samples
    return b"RIFF" + struct.pack("<I", 4 + len(chunks + data)) + b"WAVE" + chunks + data


def form(code: int = 1, bits: int = 16, rate: int = RATE, channels: int = 1) -> bytes:
    width = bits // 8 * channels
    return struct.pack("<HHIIHH", code, channels, rate, rate * width, width, bits)


def test_wav_files_as_programs_write_them() -> None:
    sound = (chirp(RATE) * 32_767).astype("<i2")
    data, pcm = sound.tobytes(), form()
    guid = struct.pack("<H", 1) + bytes.fromhex("000000001000800000aa00389b71")
    extensible = form(0xFFFE) + struct.pack("<HHI", 22, 16, 4) + guid
    listed = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"  # odd, so one byte follows it
    files = {
        "plain": wav(data, pcm),
        "extensible": wav(data, extensible),
        "form with an empty extension": wav(data, pcm + b"\0\0"),
        "an odd chunk before": wav(data, pcm, before=listed),
        "a chunk after": wav(data, pcm) + listed,
        "streamed, size 0": wav(data, pcm, size=0),
        "streamed, size unknown": wav(data, pcm, size=0xFFFFFFFF),
        "streamed, largest size": wav(data, pcm, size=0x7FFFFFFF),
    }
    for name, file in files.items():
        samples = decoded(file)
        assert len(samples) == pytest.approx(len(sound), abs=4), name
        assert np.abs(samples[: len(sound)] - sound / 32_768).max() < 1e-4, name


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (wav(b"\0" * 4000, form(rate=1)), "OUT_OF_RANGE", "1 samples a second"),
        (wav(b"\0" * 4000, form(rate=999_999)), "OUT_OF_RANGE", "999999 samples a second"),
        (wav(b"\0" * 4000, form(channels=65)), "OUT_OF_RANGE", "65 channels"),
        (wav(b"\0\0\xc0\x7f" * 100, form(3, 32)), "INVALID_ARGUMENT", "not finite"),
        (wav(b"", form()), "INVALID_ARGUMENT", "no samples"),
        (wav(b"\0" * 4000, form(0x1234)), "INVALID_ARGUMENT", "cannot be decoded"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n", "", "is not a WAV"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "", "is not a WAV"),
        (b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=audio 9 RTP/AVP 0\n", "", "is not a WAV"),
        (b"1\n00:00:00,000 --> 00:00:01,000\nhello\n\n" * 9, "", "is not a WAV"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 400, "", "is not a WAV"),
        (b"\xff\xfb" * 4000, "", "is not a WAV"),
    ],
)
def test_what_is_no_sound_is_refused(data: bytes, reason: str, words: str) -> None:
    got, message = refusal(data)
    assert got == (reason or "INVALID_ARGUMENT")
    assert words in message
    if words == "is not a WAV":
        assert all(name in message for name in CONTAINERS)
        assert "pcm_s16le, pcm_f32le" in message


def test_a_video_alone_is_no_sound() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as writer:
        video = writer.add_stream("mpeg4", rate=25, width=64, height=64)
        for frame in (av.VideoFrame(64, 64, "yuv420p"), None):
            writer.mux(video.encode(frame))
    assert refusal(file.getvalue())[1].endswith("cannot be decoded as sound")


def outcome(data: bytes) -> int | str:
    """The samples of a file, or the reason why there are none."""
    try:
        return len(decoded(data))
    except ServiceError as error:
        return error.reason


@pytest.mark.parametrize(("container", "codec", "rate"), EXACT + DELAYED)
def test_files_that_end_early_or_are_damaged(container: str, codec: str, rate: int) -> None:
    data = encoded(chirp(rate, 0.5), rate, container, codec)
    refusals = ("INVALID_ARGUMENT", "OUT_OF_RANGE", "INPUT_TOO_LARGE")
    most = len(decoded(data)) + 2
    for kept in (0.1, 0.5, 0.95):
        got = outcome(data[: int(len(data) * kept)])
        assert got in refusals or int(got) <= most, kept
    random = np.random.default_rng(1)
    for _ in range(4):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 20):
            damaged[place] = random.integers(0, 256)
        got = outcome(bytes(damaged))
        assert got in refusals or int(got) <= 60 * RATE


def test_a_long_sound_at_a_low_rate_is_refused_before_it_is_resampled() -> None:
    raw = pb.AudioData(data=b"\0" * (32 << 20), format="pcm_s16le", rate=1000)
    with pytest.raises(ServiceError, match="longer than the limit of 10 s"):
        decode_audio(raw, 48_000, 10)


def test_the_rate_may_change_within_a_file() -> None:
    first, second = chirp(48_000, 1), chirp(24_000, 1)
    chain = encode(first, 48_000, "adts", "aac") + encode(second, 24_000, "adts", "aac")
    assert len(decoded(chain)) == pytest.approx(2 * RATE, abs=3000)
