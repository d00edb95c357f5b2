"""Frames of the RPCs whose frames need not say their format."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import cv2
import numpy as np
import pytest

from ml import mediapipe_pb2 as pb
from shared.errors import UndecodableImageError
from vision_svc.frames.decoder import FrameDecoder
from vision_svc.frames.types import DecodedFrame, EncodedFrame, Limits, SkippedFrame, SkipReason
from vision_svc.frames.wire import ReceivedFrame
from vision_svc.service import _frames_with_features, _frames_with_templates

JPEG = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


async def frames(read: Callable[..., Any], kind: Any, *datas: bytes) -> list[EncodedFrame]:
    async def requests() -> AsyncIterator[ReceivedFrame]:
        for data in datas:
            yield ReceivedFrame(kind(), data)

    return [frame async for frame, _ in read(requests())]


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (_frames_with_templates, pb.TemplateMatchingRequest),
        (_frames_with_features, pb.MediaSequenceFrame),
    ],
)
async def test_bytes_that_say_no_format_are_a_bad_frame(
    read: Callable[..., Any], kind: Any
) -> None:
    sent = await frames(read, kind, JPEG, b"what?", b"", JPEG)
    decoder = FrameDecoder(Limits(), skips_bad=True)
    outcomes = [outcome for frame in sent for outcome in decoder.decode(frame)]
    assert [type(each) for each in outcomes] == [
        *(DecodedFrame, SkippedFrame),
        *(SkippedFrame, DecodedFrame),
    ]
    assert isinstance(outcomes[1], SkippedFrame)
    assert outcomes[1].reason is SkipReason.BAD_FRAME
    assert outcomes[1].message.startswith("frame 2 of the stream (frame_number 0): the 5 bytes of")
    with pytest.raises(UndecodableImageError, match=r"^frame 2 of the stream .* must be a jpeg"):
        list(FrameDecoder(Limits()).decode(sent[1]))
