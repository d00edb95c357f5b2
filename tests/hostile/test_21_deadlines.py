"""A deadline that passes in the middle of a stream is DEADLINE_EXCEEDED, whoever notices first."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from ml import mediapipe_pb2_grpc as vision_grpc
from ml import transformers_pb2_grpc as text_grpc
from ml.mediapipe_pb2 import VideoFrame
from ml.transformers_pb2 import GenerateEmbeddingsRequest
from tests.hostile.conftest import SMALL
from tests.support.attack import Attacks
from tests.support.stack import EMBEDDER, Stack

FRAME = VideoFrame(frame_data=bytes(64 * 48 * 3), format="rgb", width=64, height=48)
TEXTS = GenerateEmbeddingsRequest(model=EMBEDDER, texts=["a"])
# Below the number of video streams that the service takes.
VIDEO_AT_ONCE, TEXT_AT_ONCE = 12, 25
VIDEO_STREAMS, TEXT_STREAMS = 60, 200


def end_of(open_stream: Callable[..., Any], message: Any, **options: Any) -> tuple[str, bool]:
    """The status of a stream that never ends by itself, and whether it was answered before."""
    over = threading.Event()

    def messages() -> Iterator[Any]:
        while not over.is_set():
            yield message
            over.wait(0.1)

    call = open_stream(messages(), **options)
    answered = False
    try:
        for _ in call:
            answered = True
    except grpc.RpcError as error:
        return f"{error.code().name}", answered
    finally:
        over.set()
    return "OK", answered


def deadlines(count: int) -> list[float]:
    """Some that differ, so that the timers of client, Envoy and service meet differently."""
    return [0.8 + 0.013 * (number % 20) for number in range(count)]


def test_deadlines_in_the_middle_of_streams(attack: Attacks, stack: Stack) -> None:
    """Of hundreds of streams that are cut off by their deadline, all are DEADLINE_EXCEEDED."""
    with attack("21 deadlines", stack) as seen, stack.channel() as channel:
        vision = vision_grpc.MediapipeServiceStub(channel)
        text = text_grpc.TransformersServiceStub(channel)

        def video(seconds: float) -> tuple[str, bool]:
            return end_of(vision.StreamSelfieSegmentation, FRAME, timeout=seconds)

        def embeddings(seconds: float) -> tuple[str, bool]:
            return end_of(text.StreamEmbeddings, TEXTS, timeout=seconds)

        with ThreadPoolExecutor(VIDEO_AT_ONCE) as pool:
            ends = Counter(pool.map(video, deadlines(VIDEO_STREAMS)))
        with ThreadPoolExecutor(TEXT_AT_ONCE) as pool:
            ends += Counter(pool.map(embeddings, deadlines(TEXT_STREAMS)))
        assert {code for code, _ in ends} == {"DEADLINE_EXCEEDED"}, ends
        # The race is about streams whose response has begun; a busy machine has fewer of them.
        assert ends["DEADLINE_EXCEEDED", True] > 50
        seen.say(f"{ends.total()} streams, all DEADLINE_EXCEEDED")


def test_a_caller_that_leaves_its_deadline_to_us(stack: Stack) -> None:
    """A caller without a timer of its own reads the status too."""
    with stack.channel() as channel:
        stub = text_grpc.TransformersServiceStub(channel)
        end = end_of(stub.StreamEmbeddings, TEXTS, metadata=[("grpc-timeout", "800m")])
        assert end == ("DEADLINE_EXCEEDED", True)


def test_a_stream_that_goes_silent(attack: Attacks, limited: Stack) -> None:
    """A stream that idles beyond its limit is DEADLINE_EXCEEDED too, with the number."""
    with attack("21 idle stream", limited) as seen, limited.channel() as channel:
        over = threading.Event()

        def one() -> Iterator[VideoFrame]:
            yield FRAME
            over.wait()

        call = vision_grpc.MediapipeServiceStub(channel).StreamSelfieSegmentation(one())
        try:
            assert next(call)
            failure = call.exception(timeout=60)
        finally:
            over.set()
        assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert f"no message for {SMALL['STREAM_IDLE_SECONDS']} s" in failure.details()
        seen.say(failure.details())
