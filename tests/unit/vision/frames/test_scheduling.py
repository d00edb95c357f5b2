"""The tests' own encoders leave the process as it was."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.support.vision_frames import VIDEOS, encode_video


@pytest.mark.parametrize("name", VIDEOS)
def test_an_encoder_takes_no_priority(name: str) -> None:
    before = os.sched_getscheduler(0)
    encode_video([np.zeros((48, 64, 3), np.uint8)] * 2, name)
    assert os.sched_getscheduler(0) == before
