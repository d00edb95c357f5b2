"""Streams that send nothing take no slot, and end; watches never take another call's place."""

from __future__ import annotations

import contextlib
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ml import mediapipe_pb2_grpc as vision_grpc
from ml import transformers_pb2 as text_pb
from ml import transformers_pb2_grpc as text_grpc
from tests.hostile.conftest import SMALL
from tests.support.attack import Attacks
from tests.support.http2 import DATA, RawConnection
from tests.support.own_envoy import manager_of, own_envoy
from tests.support.stack import TEXT, Stack, list_models, open_channel

# More than the services take at once, and more than the breakers below.
MANY = 24
SECONDS = float(SMALL["FIRST_MESSAGE_SECONDS"])


class Silence:
    """Requests that never come, until the block ends."""

    def __init__(self) -> None:
        self._over = False

    def __iter__(self) -> Iterator[Any]:
        while not self._over:
            time.sleep(0.05)
        yield from ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._over = True


def ends(calls: list[Any]) -> Counter[tuple[str, str]]:
    """How each stream ended."""
    seen: Counter[tuple[str, str]] = Counter()
    for call in calls:
        with contextlib.suppress(grpc.RpcError):
            for _ in call:
                pass
        seen[call.code().name, call.details()] += 1
    return seen


def small_breakers(limit: int) -> Callable[[dict[str, Any]], None]:
    """Changes Envoy so that a cluster takes this many calls, and a request may take 2 s."""

    def change(config: dict[str, Any]) -> None:
        manager_of(config)["request_timeout"] = "2s"
        for cluster in config["static_resources"]["clusters"]:
            for breaker in cluster.get("circuit_breakers", {}).get("thresholds", ()):
                breaker["max_requests"] = limit

    return change


def test_streams_that_never_send(attack: Attacks, limited: Stack) -> None:
    """Streams without a message take no slot and end after the time for it; others are served."""
    silent = ("DEADLINE_EXCEEDED", f"no message within {SECONDS:g} s")
    with attack("6 silent streams", limited) as seen, limited.channel() as channel, Silence() as no:
        text = text_grpc.TransformersServiceStub(channel)
        vision = vision_grpc.MediapipeServiceStub(channel)
        kinds = (text.StreamEmbeddings, text.TranscribeStream, vision.StreamFaceDetection)
        calls = [kind(iter(no)) for kind in kinds for _ in range(MANY)]
        assert ends(calls) == {silent: len(calls)}
        seen.say(f"{len(calls)} silent streams, all {silent[0]}: {silent[1]}")


def test_a_first_message_that_trickles(attack: Attacks, limited: Stack) -> None:
    """A first message that comes byte by byte is as late as one that does not come."""
    message = text_pb.GenerateEmbeddingsRequest(model="m", texts=["x" * 1000]).SerializeToString()
    data = struct.pack(">BI", 0, len(message)) + message
    with (
        attack("6 trickled message", limited) as seen,
        RawConnection(limited.addresses["envoy"]) as connection,
    ):
        connection.open_call(1, f"/{TEXT}/StreamEmbeddings")
        start = time.monotonic()
        sent = 0
        with contextlib.suppress(ConnectionError):
            # As many bytes as fit into the time, and then some.
            while time.monotonic() < start + SECONDS + 1:
                connection.send(DATA, 0, 1, data[sent : sent + 1])
                sent += 1
                time.sleep(0.1)
        assert sent < len(data)
        assert any(frame.stream == 1 and frame.ends_stream for frame in connection.frames())
        seen.say(f"ended after {sent} bytes of {len(data)}")


def test_watches(attack: Attacks, limited: Stack, tmp_path: Path) -> None:
    """Watches over their limit are refused with the number, and never overflow Envoy."""
    request = health_pb2.HealthCheckRequest(service="")
    limit = int(SMALL["MAX_WATCHES"])
    refusal = ("RESOURCE_EXHAUSTED", f"{limit} watches are open, and the limit is {limit}")
    with (
        own_envoy(limited, tmp_path, small_breakers(MANY)) as ports,
        open_channel(address := f"127.0.0.1:{ports.envoy}") as channel,
        attack("6 watches", limited, address=address) as seen,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types name no methods
        calls = [stub.Watch(request) for _ in range(2 * MANY)]
        answers = []
        for call in calls:
            try:
                answers.append(next(call).status)
            except grpc.RpcError:
                answers.append((call.code().name, call.details()))
        opened = Counter(answers)[health_pb2.HealthCheckResponse.SERVING]
        # Some do not even reach the service: the breaker of watches is full.
        assert 0 < opened <= limit
        assert refusal in answers
        assert list_models(channel) is grpc.StatusCode.OK
        seen.say(f"{opened} of {len(calls)} watches: {refusal[1]}")
        for call in calls:
            call.cancel()


def test_calls_without_their_message(attack: Attacks, limited: Stack, tmp_path: Path) -> None:
    """Calls whose one message does not come end, and others are served again."""
    with (
        own_envoy(limited, tmp_path, small_breakers(MANY)) as ports,
        open_channel(address := f"127.0.0.1:{ports.envoy}") as channel,
        # The other services have breakers of their own.
        attack("6 calls without a message", limited, address=address) as seen,
        Silence() as no,
    ):
        infer: Any = channel.stream_unary(f"/{TEXT}/Infer")
        calls = [infer.future(iter(no)) for _ in range(2 * MANY)]
        codes = Counter((call.code().name, call.details()) for call in calls)
        late = ("DEADLINE_EXCEEDED", "the request was not complete within 45 s")
        assert codes[late] == MANY
        assert {code for code, _ in codes} == {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
        with pytest.raises(grpc.RpcError) as answer:
            stub = text_grpc.TransformersServiceStub(channel)
            stub.Infer(text_pb.InferRequest(model="no/model"), timeout=60)
        assert answer.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        seen.say(f"{codes[late]} calls without a message: {late[1]}")
