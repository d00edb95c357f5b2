"""Where a sound is cut, however its samples arrive."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text_svc.worker.media.speech_cutter import (
    Piece,
    SpeechCutter,
)

RATE = 16_000


def sound(seconds: float, level: float = 0.2) -> np.ndarray:
    size = int(seconds * RATE)
    return (np.random.default_rng(0).normal(0, level, size)).clip(-1, 1).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE), np.float32)


def cut(samples: np.ndarray, chunk: int, longest: float = 30) -> list[Piece]:
    cutter = SpeechCutter(RATE, longest)
    chunks = [samples[at : at + chunk] for at in range(0, len(samples), chunk)]
    pieces = [piece for each in chunks for piece in cutter.add(each)]
    last = cutter.rest()
    assert cutter.seconds == pytest.approx(len(samples) / RATE)
    return [*pieces, last] if last else pieces


def spans(pieces: list[Piece]) -> list[tuple[float, float]]:
    return [(each.start, each.start + len(each.samples) / RATE) for each in pieces]


def test_a_pause_ends_a_piece_and_silence_is_left_out() -> None:
    parts = [silence(4), sound(2), silence(3), sound(6), silence(0.7), sound(1)]
    found = spans(cut(np.concatenate(parts), chunk=1000))
    wanted = [(4, 6), (9, 15), (15.7, 16.7)]
    assert len(found) == len(wanted)
    for (start, end), (begun, ended) in zip(found, wanted, strict=True):
        assert begun - 1 <= start <= begun
        assert ended <= end <= ended + 1


def test_silence_alone_is_no_piece() -> None:
    assert cut(silence(100), chunk=4000) == []


def test_without_a_pause_the_cut_is_in_the_quietest_place() -> None:
    samples = sound(50)
    samples[25 * RATE : int(25.1 * RATE)] *= 0.3
    found = spans(cut(samples, chunk=7777))
    assert found[0][1] == pytest.approx(25.05, abs=0.06)
    assert found[-1][1] == pytest.approx(50)
    assert all(end - start <= 30.01 for start, end in found)


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.floats(0.1, 9), st.sampled_from([0.0, 0.05, 0.3])), min_size=1, max_size=6
    ),
    st.integers(1, 50_000),
)
def test_the_chunks_do_not_matter_and_no_sound_is_lost(
    parts: list[tuple[float, float]], chunk: int
) -> None:
    samples = np.concatenate([sound(seconds, level) for seconds, level in parts])
    whole, pieces = cut(samples, len(samples), longest=5), cut(samples, chunk, longest=5)
    assert spans(whole) == spans(pieces)
    kept = np.zeros(len(samples), bool)
    for piece in pieces:
        start = round(piece.start * RATE)
        assert (samples[start : start + len(piece.samples)] == piece.samples).all()
        assert not kept[start : start + len(piece.samples)].any(), "pieces do not overlap"
        kept[start : start + len(piece.samples)] = True
    assert np.abs(samples[~kept]).max(initial=0) < 0.05 * 6, "what is left out is quiet"
