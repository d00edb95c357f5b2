"""A model that dies whenever it is ready is loaded again more and more rarely, and says so."""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from ml import common_pb2, transformers_pb2_grpc
from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from ml import transformers_pb2 as pb
from tests.support.attack import Attacks
from tests.support.stack import EMBEDDER, Stack

# Failed loads after which the model is left alone, instead of five; more deaths are let pass.
MAX_FAILURES = 2
# Time between the second death and the load after it.
MIN_WAIT_SECONDS = 2.0
# Ends a test in which nothing happens; measures nothing.
PATIENCE = 240


def embed(channel: grpc.Channel) -> grpc.RpcError | None:
    """Embeds a text; the error, if it fails."""
    stub = transformers_pb2_grpc.TransformersServiceStub(channel)
    request = pb.GenerateEmbeddingsRequest(model=EMBEDDER, texts=["the sea"])
    try:
        stub.GenerateEmbeddings(request, timeout=60)
    except grpc.RpcError as error:
        return error
    return None


def retry_seconds(error: grpc.RpcError) -> float:
    """When the caller is told to come again; 0 if it is not."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.RetryInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            return info.retry_delay.seconds + info.retry_delay.nanos / 1e9
    return 0.0


def test_a_model_that_dies_whenever_it_is_ready(
    attack: Attacks, private_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that keeps dying comes back each time, later and later; LoadModel tries at once."""
    monkeypatch.setenv("MODEL_MGMT_MAX_LOAD_FAILURES", str(MAX_FAILURES))
    stack = private_stack()
    stack.wait_listening()
    stack.wait_serving()
    load = models_pb.LoadModelRequest(model_id=EMBEDDER, pipeline_type="feature-extraction")
    deaths: list[float] = []
    errors: list[grpc.RpcError] = []
    with attack("15 death when ready", stack, bystander=("models", "faces")) as seen:
        with stack.channel() as channel:
            models = models_grpc.ModelManagementServiceStub(channel)
            models.LoadModel(load, timeout=300)
            give_up = time.monotonic() + PATIENCE
            while time.monotonic() < give_up and len(deaths) <= MAX_FAILURES:
                workers = [
                    process
                    for process, command in stack.commands()
                    if "text_svc.worker " in command
                ]
                # Asked after it is seen: the death of the one before has been noticed by then.
                loaded = models.GetLoadedModels(common_pb2.EmptyRequest(), timeout=60).models
                if loaded and workers:
                    workers[0].kill()
                    workers[0].wait(60)
                    deaths.append(time.monotonic())
                elif error := embed(channel):
                    errors.append(error)
                    assert error.code() is grpc.StatusCode.UNAVAILABLE
                    assert "loaded again" in (error.details() or "")
            assert len(deaths) == MAX_FAILURES + 1
            assert deaths[2] - deaths[1] >= MIN_WAIT_SECONDS
            assert max(map(retry_seconds, errors)) > 1.0
            models.LoadModel(load, timeout=300)
            assert embed(channel) is None
        seen.say(f"{len(deaths)} deaths, {errors[-1].details()}")
