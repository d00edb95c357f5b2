"""A client that streams until it is killed: `python -m tests.integration.vision.endless_client`."""

from __future__ import annotations

import sys

from ml import mediapipe_pb2_grpc
from tests.support.stack import open_channel
from tests.support.vision_frames import rgb_frames
from tools import vision_clips

if __name__ == "__main__":
    (message,) = rgb_frames([vision_clips.drawn_hand()])
    stub = mediapipe_pb2_grpc.MediapipeServiceStub(open_channel(sys.argv[1]))
    for answer in stub.StreamFaceMesh(iter(lambda: message, None)):
        print(answer.frame_number, flush=True)
