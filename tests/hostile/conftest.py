"""Fixtures of the attacks, and the report of what they did."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from tests.support.attack import PROPERTY, Attacks, Seen
from tests.support.stack import CHAT, EMBEDDER, Stack, stack_in


@pytest.fixture(scope="package")
def stack(stack: Stack) -> Iterator[Stack]:
    """The shared stack with the embedding model loaded, for the bystander's calls."""
    with stack.channel() as channel:
        stub = models_grpc.ModelManagementServiceStub(channel)
        stub.LoadModel(
            models_pb.LoadModelRequest(model_id=EMBEDDER, pipeline_type="feature-extraction"),
            timeout=300,
        )
        yield stack
        stub.UnloadModel(models_pb.UnloadModelRequest(model_id=EMBEDDER), timeout=60)


# Settings of `limited`, by name without the service's prefix.
SMALL = {
    "MAX_CONCURRENT_CALLS": "8",
    "FIRST_MESSAGE_SECONDS": "2",
    "STREAM_IDLE_SECONDS": "3",
    "READER_SECONDS": "3",
    "MAX_WATCHES": "12",
}


@pytest.fixture(scope="package")
def limited(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose limits of calls and streams are small, so that attacks can be small."""
    with contextlib.ExitStack() as running:
        with pytest.MonkeyPatch.context() as patch:
            for prefix in ("MODEL_MGMT", "TEXT", "VISION"):
                for name, value in SMALL.items():
                    patch.setenv(f"{prefix}_{name}", value)
            # A model's files are fetched through it, many at once.
            patch.delenv("MODEL_MGMT_MAX_CONCURRENT_CALLS")
            started = running.enter_context(stack_in(tmp_path_factory.mktemp("limited")))
        started.wait_serving()
        yield started


@pytest.fixture
def stub(stack: Stack) -> Iterator[models_grpc.ModelManagementServiceStub]:
    """Of the shared stack; the chat model is unloaded at the end."""
    with stack.channel() as channel:
        stub = models_grpc.ModelManagementServiceStub(channel)
        yield stub
        with contextlib.suppress(grpc.RpcError):  # it is not loaded
            stub.UnloadModel(models_pb.UnloadModelRequest(model_id=CHAT), timeout=60)


@pytest.fixture
def attack(request: pytest.FixtureRequest) -> Iterator[Attacks]:
    """Watches an attack: `with attack("2 header of weights", stack) as seen:`.

    What is promised is the first line of the test's docstring, or of its file's.
    """
    said = request.function.__doc__ or request.module.__doc__
    assert said, "the test's file says what is promised"
    record: list[Seen] = []
    yield Attacks(said.strip().partition("\n")[0], record)
    # In the test's report, which also comes from another process when tests run in several.
    request.node.user_properties += [(PROPERTY, seen.summary()) for seen in record]
