"""Helpers of the stream tests."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest

from tools import vision_clips


def person(frames: int = 5) -> list[np.ndarray]:
    return list(vision_clips.moving(vision_clips.astronaut(), frames))


def error_of(call: Any) -> grpc.RpcError:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as raised:
        list(call) if hasattr(call, "__iter__") else call.result()
    return raised.value
