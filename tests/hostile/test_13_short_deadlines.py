"""A model whose load takes longer than its callers wait is loaded all the same."""

from __future__ import annotations

import time

import grpc
import pytest

from ml import common_pb2
from ml import model_management_pb2 as pb
from ml import model_management_pb2_grpc as pb_grpc
from tests.support.attack import Attacks
from tests.support.stack import CHAT, Stack, wait_for

# Loading takes longer, with the model converted already.
DEADLINE_SECONDS = 0.3
LOAD = pb.LoadModelRequest(model_id=CHAT, pipeline_type="chat")
Code = grpc.StatusCode


def test_many_calls_with_short_deadlines_end_with_the_model(
    attack: Attacks, stack: Stack, stub: pb_grpc.ModelManagementServiceStub
) -> None:
    """Calls of LoadModel with a deadline shorter than the load find the model loaded in the end."""

    def status() -> Code:
        return stub.LoadModel.future(LOAD, timeout=DEADLINE_SECONDS).code()

    give_up = time.monotonic() + 240
    with attack("13 short deadlines", stack) as seen:
        expired = 0
        while (code := status()) is not Code.OK:
            assert code is Code.DEADLINE_EXCEEDED
            expired += 1
            assert time.monotonic() < give_up, f"not loaded after {expired} calls"
        assert expired > 1
        seen.say(f"loaded after {expired} calls of {DEADLINE_SECONDS} s that expired")


def test_an_unload_stops_a_load_whose_callers_are_gone(
    attack: Attacks, stack: Stack, stub: pb_grpc.ModelManagementServiceStub
) -> None:
    """UnloadModel stops a load that goes on without callers, and frees what it holds."""

    def workers() -> list[str]:
        commands = [command for _, command in stack.commands()]
        return [command for command in commands if "text_svc.worker" in command]

    before = len(workers())
    with attack("13 unload of a load without callers", stack) as seen:
        with pytest.raises(grpc.RpcError):
            stub.LoadModel(LOAD, timeout=DEADLINE_SECONDS)
        answer = stub.UnloadModel(pb.UnloadModelRequest(model_id=CHAT), timeout=60)
        assert "its load is stopped" in answer.message
        models = stub.GetLoadedModels(common_pb2.EmptyRequest(), timeout=60).models
        assert CHAT not in [model.model_id for model in models]
        wait_for("the end of its process", lambda: len(workers()) == before)
        seen.say(answer.message)
