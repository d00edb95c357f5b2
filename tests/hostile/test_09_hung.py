"""A process that hangs is noticed: its callers are told, it is ended, and its model comes back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc as pb_grpc
from tests.support.attack import Attacks
from tests.support.folders import MakeFolder
from tests.support.stack import CHAT, EMBEDDER, Stack, stack_in, wait_for

HANG_SECONDS, SERVICE_HANG_SECONDS = 3, 8
# Ends a test whose call waits for ever; measures nothing.
PATIENCE = 120


def load(stack: Stack, model_id: str, kind: str) -> None:
    with stack.channel() as channel:
        stub = models_grpc.ModelManagementServiceStub(channel)
        request = models_pb.LoadModelRequest(model_id=model_id, pipeline_type=kind)
        stub.LoadModel(request, timeout=300)


@pytest.fixture(scope="module")
def stack(models: Path, module_folder: MakeFolder) -> Iterator[Stack]:
    """A stack of its own with an embedding model, which soon notices a hang."""
    limit = ("--hang-seconds", str(SERVICE_HANG_SECONDS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEXT_HANG_SECONDS", str(HANG_SECONDS))
        with stack_in(module_folder("hung"), *limit) as running:
            running.wait_serving()
            load(running, EMBEDDER, "feature-extraction")
            yield running


@pytest.fixture
def chat(stack: Stack) -> Iterator[None]:
    """The chat model beside it."""
    load(stack, CHAT, "text-generation")
    yield
    with stack.channel() as channel:
        stub = models_grpc.ModelManagementServiceStub(channel)
        stub.UnloadModel(models_pb.UnloadModelRequest(model_id=CHAT), timeout=60)


def process_of(stack: Stack, *words: str) -> psutil.Process:
    """The one process of the stack whose command has all these words."""
    (found,) = (
        process for process, command in stack.commands() if all(word in command for word in words)
    )
    return found


def generate(channel: grpc.Channel, length: int) -> Any:
    request = pb.TextRequest(model=CHAT, prompt="The sea", max_length=length)
    return pb_grpc.TransformersServiceStub(channel).GenerateText(request, timeout=PATIENCE)


def hung(stack: Stack) -> int:
    """How many processes of the chat model have hung, as the metrics page says."""
    with urllib.request.urlopen(f"http://{stack.addresses['text_metrics']}/metrics") as page:
        for line in page.read().decode().splitlines():
            if line.startswith("text_model_ends_total") and CHAT in line and 'how="hung"' in line:
                return int(float(line.rpartition(" ")[2]))
    return 0


def answers(stack: Stack) -> bool:
    """Whether the model answers; until it does, its callers are told to come again."""
    with stack.channel() as channel:
        responses = generate(channel, 3)
        with contextlib.suppress(grpc.RpcError):
            *_, last = responses
            return bool(last.done)
    assert responses.code() is grpc.StatusCode.UNAVAILABLE, responses.details()
    return False


def test_a_models_process_that_hangs(attack: Attacks, stack: Stack, chat: None) -> None:
    """A model's process that hangs is ended within its limit, and the model comes back."""
    victims = {
        "worker": ("text_svc.worker ", CHAT),
        "engine": ("openvino_process",),
    }
    with attack("9 hung process", stack) as seen:
        for count, (name, words) in enumerate(victims.items(), 1):
            worker = process_of(stack, "text_svc.worker ", CHAT)
            victim = process_of(stack, *words)
            with stack.channel() as channel:
                responses = generate(channel, 4000)
                next(iter(responses))
                os.kill(victim.pid, signal.SIGSTOP)
                with pytest.raises(grpc.RpcError) as caught:
                    list(responses)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, caught.value.details()
            said = caught.value.details()
            assert "hung" in said
            assert "being loaded again" in said
            wait_for("the model's return", lambda: answers(stack), PATIENCE)
            assert hung(stack) == count
            assert not worker.is_running()
            assert not victim.is_running()
            seen.say(f"{name}: {said}")
    lines = [
        line
        for line in map(json.loads, (stack.logs / "text_svc.log").read_text().splitlines())
        if line.get("message") == "model process hangs and is ended"
    ]
    assert len(lines) == 2
    assert all("openvino_process.py" in line["tracebacks"] for line in lines)
    assert all("base_events.py" in line["tracebacks"] for line in lines)


def embeds(stack: Stack) -> bool:
    """Whether the embedding model answers; until it does, its callers are told to come again."""
    with stack.channel() as channel:
        stub = pb_grpc.TransformersServiceStub(channel)
        request = pb.GenerateEmbeddingsRequest(model=EMBEDDER, texts=["the sea"])
        try:
            stub.GenerateEmbeddings(request, timeout=PATIENCE)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
    return True


def test_a_whole_process_that_hangs(attack: Attacks, stack: Stack) -> None:
    """A service or Envoy that no longer serves is killed and started again by the launcher."""
    log = stack.logs / "text_svc.log"
    before = log.stat().st_size
    with attack("9 hung service", stack, bystander=("faces",), ends=["text_svc"]) as seen:
        old = stack.kill("text_svc", signal.SIGSTOP)
        stack.wait_restarted("text_svc", old)
        wait_for("the model's return", lambda: embeds(stack), PATIENCE)
        seen.say("text_svc stopped: restarted with its model")
    assert b"base_events.py" in log.read_bytes()[before:]  # its tracebacks
    old = stack.kill("envoy", signal.SIGSTOP)
    stack.wait_restarted("envoy", old)
    wait_for("calls through the new Envoy", lambda: embeds(stack), PATIENCE)
    said = f"has not served for {SERVICE_HANG_SECONDS} s and is killed"
    assert stack.output().count(said) == 2
