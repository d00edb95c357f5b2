"""What was generated from the published contract works against the running set."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.contract.compiled import generate_client
from tests.contract.test_descriptors import CONTRACT_SET, _methods
from tests.support.stack import Stack

CLIENT = Path(__file__).parent / "published_client.py"
MODELS_USED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "sentence-transformers/all-MiniLM-L6-v2",
}


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    generate_client(folder)
    return folder


def run_client(stubs: Path, address: str, models: Path) -> dict:
    """Runs the published client in a process of its own, outside of this project's folder."""
    picture = models / "pictures" / "astronaut.png"
    result = subprocess.run(
        [sys.executable, "-I", CLIENT, stubs, address, picture],
        capture_output=True,
        text=True,
        cwd=stubs,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def check_main_job(seen: dict) -> None:
    """The main job's results are those of real models."""
    assert seen["load text-generation"][0] is True
    # 134.5 M parameters of 4 bytes are 513 MiB, and 22.7 M of them 87 MiB; the rest is what their
    # processes hold besides.
    assert 513 <= seen["load text-generation"][1] < 513 + 2048
    assert seen["load feature-extraction"][0] is True
    assert 87 <= seen["load feature-extraction"][1] < 87 + 512
    assert seen["embeddings"] == [384, 384]
    assert "Paris" in seen["chat"]
    assert "Ġ" not in seen["chat"]
    assert seen["chat messages"] >= 4  # a stream, not one lump
    assert seen["chat end"] == ["", "stop"]
    assert 1 <= seen["generated tokens"] <= 8  # sampled: it may end by itself
    assert seen["generate ends"] is True
    assert seen["generate last text"] == ""
    (face,) = seen["faces"]
    assert 0.3 < face[0] < 0.5  # the astronaut's face
    assert 0.1 < face[1] < 0.3
    assert face[4] > 0.7
    assert seen["keypoints"] == [6]
    assert seen["stream"] == [[0, 0, 1], [1, 40, 1], [2, 80, 1]]
    assert set(seen["loaded"]) >= MODELS_USED
    assert seen["unload"] == [True, True]
    assert not MODELS_USED & set(seen["left"])


@pytest.mark.parametrize("auto_load", ["", "true"])
def test_the_main_job_from_the_first_second(
    private_stack: Callable[..., Stack],
    stubs: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    auto_load: str,
) -> None:
    """The client neither waits for the services nor tries again: its calls wait.

    It loads its models by name, and notices nothing where calls would load them.
    """
    monkeypatch.setenv("AUTO_LOAD", auto_load)
    stack = private_stack()
    stack.wait_listening()
    check_main_job(run_client(stubs, stack.addresses["envoy"], models))


def test_the_main_job(stack: Stack, stubs: Path, models: Path) -> None:
    check_main_job(run_client(stubs, stack.addresses["envoy"], models))


@pytest.mark.parametrize("method", sorted(_methods(CONTRACT_SET)))
def test_every_rpc_answers(stack: Stack, method: str) -> None:
    """An empty request reaches the right service: its answer is ours, whatever it says."""
    _, _, client_streaming, server_streaming = _methods(CONTRACT_SET)[method]
    kind = (
        f"{'stream' if client_streaming else 'unary'}_{'stream' if server_streaming else 'unary'}"
    )
    request = iter([b""]) if client_streaming else b""
    # Not grpc.aio: if a call is refused while its client still writes, that client makes the status
    # INTERNAL, "Internal error from Core".
    with stack.channel() as channel:
        rpc = getattr(channel, kind)(method)
        call = (rpc if server_streaming else rpc.future)(request, timeout=120)
        code = call.code()
        details = call.details()
        trailers = dict(call.trailing_metadata())
    assert code is not grpc.StatusCode.UNIMPLEMENTED, "all RPCs are built"
    if method == "/ml.ModelManagementService/GetLoadedModels":
        assert code is grpc.StatusCode.OK
    else:
        assert code is grpc.StatusCode.INVALID_ARGUMENT, details
    if code is not grpc.StatusCode.OK:
        assert trailers["grpc-status-details-bin"]
