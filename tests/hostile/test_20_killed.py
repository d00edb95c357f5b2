"""A process that is killed is UNAVAILABLE at its callers, unless a response has begun in Envoy."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psutil
import pytest

from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from ml import transformers_pb2_grpc as text_grpc
from ml.transformers_pb2 import GenerateEmbeddingsRequest
from tests.support.attack import Attacks
from tests.support.stack import EMBEDDER, TEXT, Stack, open_channel, wait_for

TEXTS = GenerateEmbeddingsRequest(model=EMBEDDER, texts=["a"])
STREAMS = 4


@pytest.fixture
def embedding(limited: Stack) -> Iterator[grpc.Channel]:
    """A channel to the stack with the embedding model loaded, also after a restart."""
    with limited.channel() as channel:
        models = models_grpc.ModelManagementServiceStub(channel)
        request = models_pb.LoadModelRequest(model_id=EMBEDDER, pipeline_type="feature-extraction")
        models.LoadModel(request, timeout=300)
        yield channel


class Streams:
    """Open StreamEmbeddings that send one message each, or none, and then wait."""

    def __init__(self, channel: grpc.Channel, count: int, *, messages: bool) -> None:
        self._over = threading.Event()
        self._messages = messages
        stub = text_grpc.TransformersServiceStub(channel)
        self.calls = [stub.StreamEmbeddings(self._requests()) for _ in range(count)]
        if messages:
            for call in self.calls:
                assert next(call).embeddings

    def _requests(self) -> Iterator[GenerateEmbeddingsRequest]:
        if self._messages:
            yield TEXTS
        self._over.wait()

    def codes(self) -> set[str]:
        """The statuses with which they ended."""
        try:
            return {call.exception(timeout=60).code().name for call in self.calls}
        finally:
            self._over.set()


def running_calls(stack: Stack) -> int:
    """How many streams Envoy has open to text_svc."""
    address = (
        f"http://{stack.addresses['envoy_admin']}/stats?filter=cluster.text.upstream_rq_active"
    )
    with urllib.request.urlopen(address, timeout=30) as page:
        stats = dict(line.split(": ") for line in page.read().decode().splitlines())
    return int(stats["cluster.text.upstream_rq_active"])


def text_served(stack: Stack) -> bool:
    """Whether the embedding model answers, on a connection of its own."""
    with open_channel(stack.addresses["envoy"]) as channel:
        try:
            text_grpc.TransformersServiceStub(channel).GenerateEmbeddings(TEXTS, timeout=60)
        except grpc.RpcError:
            return False
    return True


def test_a_model_process_is_killed(
    attack: Attacks, limited: Stack, embedding: grpc.Channel
) -> None:
    """Streams of a model whose process is killed are UNAVAILABLE; other models are served."""
    with attack("20 killed model process", limited, bystander=("models", "faces")) as seen:
        streams = Streams(embedding, STREAMS, messages=True)
        (worker,) = (
            child
            for child in psutil.Process(limited.pids["text_svc"]).children(recursive=True)
            if EMBEDDER in " ".join(child.cmdline()) and "text_svc.worker" in child.cmdline()
        )
        worker.kill()
        assert streams.codes() == {"UNAVAILABLE"}
        seen.say(f"{STREAMS} streams in the middle: UNAVAILABLE")
    wait_for("the model", lambda: text_served(limited))


def test_text_svc_is_killed(attack: Attacks, limited: Stack, embedding: grpc.Channel) -> None:
    """Calls of a killed text_svc that wait for their first response are UNAVAILABLE."""
    with (
        attack(
            "20 killed text_svc", limited, bystander=("models", "faces"), ends=["text_svc"]
        ) as seen,
        ThreadPoolExecutor(STREAMS) as pool,
    ):
        begun = Streams(embedding, STREAMS, messages=True)
        waiting = Streams(embedding, STREAMS, messages=False)
        quiet: Any = embedding.stream_unary(f"/{TEXT}/Infer")
        over = threading.Event()

        def unary() -> str:
            call = quiet.future(iter(over.wait, True))
            return str(call.code().name)

        unaries = [pool.submit(unary) for _ in range(STREAMS)]
        wait_for("all calls in text_svc", lambda: running_calls(limited) == 3 * STREAMS)
        pid = limited.kill("text_svc")
        try:
            assert {each.result(60) for each in unaries} == {"UNAVAILABLE"}
        finally:
            over.set()
        assert waiting.codes() == {"UNAVAILABLE"}
        # Envoy cannot send a status behind a response that has begun: it resets the stream.
        assert begun.codes() == {"INTERNAL"}
        limited.wait_restarted("text_svc", pid)
        seen.say(f"{2 * STREAMS} calls without a response: UNAVAILABLE")
    limited.wait_serving()
    wait_for("the model", lambda: text_served(limited))
