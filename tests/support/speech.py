"""Spoken sentences, by eSpeak NG from the package espeakng-loader."""

from __future__ import annotations

import ctypes
import io
import subprocess
import sys
import wave
from importlib import import_module

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.stack import ROOT

# From speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_RATE_PARAMETER = 1
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def speak(text: str, words_a_minute: int = 140) -> tuple[npt.NDArray[np.int16], int]:
    """Samples of a spoken English text, and their rate. Skips the test if eSpeak is not installed.

    In a process of its own: eSpeak's output depends a little on its earlier output.
    """
    pytest.importorskip("espeakng_loader", reason="espeakng-loader speaks the test's text")
    command = (sys.executable, "-m", __name__, text, str(words_a_minute))
    answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    return np.frombuffer(answer[4:], "<i2"), int.from_bytes(answer[:4], "little")


def _spoken(text: str, words_a_minute: int) -> tuple[int, bytes]:
    """The rate and the samples of a text."""
    loader = import_module("espeakng_loader")
    espeak = ctypes.CDLL(loader.get_library_path())
    rate = espeak.espeak_Initialize(
        _AUDIO_OUTPUT_SYNCHRONOUS, 0, loader.get_data_path().encode(), 0
    )
    assert rate > 0, "eSpeak does not start"
    parts: list[npt.NDArray[np.int16]] = []

    @_CALLBACK
    def take(samples: ctypes._Pointer[ctypes.c_short], count: int, _: object) -> int:
        if count:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    espeak.espeak_SetSynthCallback(take)
    espeak.espeak_SetVoiceByName(b"en-us")
    espeak.espeak_SetParameter(_RATE_PARAMETER, words_a_minute, 0)
    spoken = text.encode()
    espeak.espeak_Synth(spoken, len(spoken) + 1, 0, 0, 0, _CHARS_UTF8, None, None)
    espeak.espeak_Synchronize()
    return rate, np.concatenate(parts).astype("<i2").tobytes()


def wav(samples: npt.NDArray[np.int16], rate: int) -> bytes:
    """A WAV file of one channel."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


if __name__ == "__main__":
    _rate, _samples = _spoken(sys.argv[1], int(sys.argv[2]))
    sys.stdout.buffer.write(_rate.to_bytes(4, "little") + _samples)
