"""The main job when processes die, and when the application starts the set its own way."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
import pytest

from ml import (
    mediapipe_pb2,
    mediapipe_pb2_grpc,
    model_management_pb2,
    model_management_pb2_grpc,
    transformers_pb2,
    transformers_pb2_grpc,
)
from stack.ports import accepts
from tests.contract.compiled import generate_client
from tests.contract.test_published_client import check_main_job, run_client
from tests.support.processes import free_port
from tests.support.stack import TEXT, VISION, Stack, any_python, start_stack, wait_for

CHAT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# How long a caller may wait for the error of a service that was killed; nothing is measured.
ERROR_SECONDS = 120


def _load(channel: grpc.Channel) -> model_management_pb2.LoadModelResponse:
    return model_management_pb2_grpc.ModelManagementServiceStub(channel).LoadModel(
        model_management_pb2.LoadModelRequest(model_id=CHAT_MODEL, pipeline_type="text-generation"),
        timeout=300,
    )


def _chat(channel: grpc.Channel, words: str) -> grpc.Call:
    return transformers_pb2_grpc.TransformersServiceStub(channel).ChatCompletion(
        transformers_pb2.ChatRequest(
            model=CHAT_MODEL,
            messages=[transformers_pb2.ChatMessage(role="user", content=words)],
        ),
        timeout=ERROR_SECONDS,
    )


def _detect(channel: grpc.Channel, models: Path) -> int:
    picture = (models / "pictures" / "astronaut.png").read_bytes()
    request = mediapipe_pb2.ImageRequest(image_data=picture, format="png")
    answer = mediapipe_pb2_grpc.MediapipeServiceStub(channel).DetectFaces(request, timeout=30)
    return len(answer.faces)


def _orphans(stack: Stack) -> list[int]:
    """The models' processes whose service is no more."""
    service, found = stack.pids["text_svc"], []
    for process in stack.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "text_svc.worker" in process.cmdline() and process.ppid() != service:
                found.append(process.pid)
    return found


def test_text_svc_killed_during_a_chat(
    private_stack: Callable[..., Stack], models: Path, record_property: Callable[..., None]
) -> None:
    stack = private_stack()
    stack.wait_listening()
    stack.wait_serving()
    envoy = stack.pids["envoy"]
    with stack.channel() as channel:
        _load(channel)
        stream = _chat(channel, "Tell me a long story about the sea, with many chapters.")
        assert next(stream).content
        killed = stack.kill("text_svc")
        start = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            for _ in stream:
                pass
        seconds = time.monotonic() - start
        record_property("error_after_seconds", seconds)
        print(f"the caller had {caught.value.code().name} after {seconds * 1000:.0f} ms")
        # Envoy answers for an upstream that dies in the middle of a stream.
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
        assert _detect(channel, models) == 1
        stack.wait_restarted("text_svc", killed)
        assert _detect(channel, models) == 1
        stack.wait_serving([TEXT, VISION])
        assert stack.pids["envoy"] == envoy
        assert _load(channel).success
        assert "".join(m.content for m in _chat(channel, "Say hello."))
    wait_for("the end of what the killed service had started", lambda: not _orphans(stack))


def test_started_as_the_application_does(
    models: Path, tmp_path: Path, provider: str, record_property: Callable[..., None]
) -> None:
    """python3 ml_server.py --port N, pipes that nobody reads, connect once, SIGKILL."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    generate_client(stubs)
    folder, port = tmp_path / "run", free_port()
    command = [any_python(), "ml_server.py", "--port", str(port), "--provider", provider]
    command += ["--base-port", "auto", "--run-dir", str(folder)]
    start = time.monotonic()
    stack = start_stack(folder, command=command, stdout=subprocess.PIPE)
    try:
        # The application waits 2 s; how long it takes here is told, not judged.
        wait_for("the port", lambda: accepts(port))
        record_property("port_after_seconds", time.monotonic() - start)
        address = f"127.0.0.1:{port}"
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
            stack.wait_listening()
            stack.wait_serving()
            check_main_job(run_client(stubs, address, models))
        stack.process.kill()
        stack.wait_gone()
    finally:
        stack.stop()


@pytest.fixture
def provider(stack: Stack) -> str:
    """A file provider that plays the application's part."""
    return stack.addresses["provider"]
