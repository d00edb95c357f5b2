"""http_svc before judges that nobody here wrote: clients and suites of others, offline.

They run in front of services whose answers are written down, and OpenAI's client in front of real
models, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from http_svc.serving import bind, serve
from http_svc.settings import HttpSettings
from ml import model_management_pb2 as mgmt
from ml import model_management_pb2_grpc as mgmt_rpc
from ml import transformers_pb2 as pb
from tests.judges.environment import JUDGES, judges_node_modules, judges_python
from tests.support.scripted_services import Script, scripted_services
from tests.support.stack import CHAT, EMBEDDER, ROOT, Stack

SPEECH = "openai/whisper-tiny.en"
VOICE = "rhasspy/en_US-joe-medium"
MODELS = {
    CHAT: "text-generation",
    EMBEDDER: "feature-extraction",
    SPEECH: "automatic-speech-recognition",
    VOICE: "text-to-speech",
}
_SECONDS = 500

# What llm-comply does not try with models of other names.
SKIPPED = {"chat-reasoning-summary", "anth-thinking-display", "reasoning-summary"}


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        return judges_python()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        reason = f"the judges cannot be installed: {(error.stderr or '')[-500:]}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def written_down() -> Iterator[str]:
    """The address of http_svc in front of services whose answers are written down."""
    script = Script(
        calls=True,
        inferred=pb.InferResponse(
            text="Hello.",
            documents=[pb.RankedDocument(index=0, score=0.75)],
            audio=pb.AudioData(data=bytes(4000), format="pcm_f32le", rate=8000, channels=1),
        ),
        models=[mgmt.ModelStatus(model_id="org/tiny", state=mgmt.MODEL_STATE_READY)],
    )
    listening = bind("127.0.0.1", 0)
    runner, stop = asyncio.Runner(), asyncio.Event()
    loop = runner.get_loop()

    async def run() -> None:
        async with scripted_services(script) as behind:
            settings = HttpSettings(
                text_addr=behind, model_mgmt_addr=behind, drain_seconds=0, grace_seconds=1
            )
            await serve(settings, listening, stop)

    address = "http://{}:{}".format(*listening.getsockname())
    thread = threading.Thread(target=lambda: runner.run(run()))
    thread.start()
    yield address
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    runner.close()


@pytest.fixture(scope="module")
def real(stack: Stack) -> Iterator[str]:
    """The address of Envoy in front of real models."""
    with stack.channel() as channel:
        stub = mgmt_rpc.ModelManagementServiceStub(channel)
        for model, kind in MODELS.items():
            stub.LoadModel(mgmt.LoadModelRequest(model_id=model, pipeline_type=kind))
    yield f"http://{stack.addresses['envoy']}"
    with stack.channel() as channel:
        stub = mgmt_rpc.ModelManagementServiceStub(channel)
        for model in (SPEECH, VOICE):
            stub.UnloadModel(mgmt.UnloadModelRequest(model_id=model))


def judge(command: list[str], address: str) -> str:
    """What a judge printed; it passed everything."""
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": f"{address}/v1",
        "ANTHROPIC_BASE_URL": address,
        "CHAT": CHAT,
        "EMBEDDER": EMBEDDER,
        "LANGSMITH_TRACING": "false",
        "NO_PROXY": "*",
    }
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        command, env=environment, cwd=JUDGES, capture_output=True, text=True, timeout=_SECONDS
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_llm_comply(python: Path, written_down: str) -> None:
    said = judge([str(python), "comply.py", f"{written_down}/v1", "org/tiny"], written_down)
    found = json.loads(said)
    assert {name for name, each in found.items() if each["status"] == "skipped"} == SKIPPED
    failed = {name: each["errors"] for name, each in found.items() if each["status"] == "failed"}
    assert not failed
    assert len(found) == 31


def test_schemathesis_finds_no_server_error(python: Path, written_down: str) -> None:
    command = [str(python), "-m", "schemathesis.cli", "run", f"{written_down}/v1/openapi.json"]
    command += ["--checks", "not_a_server_error", "--max-examples", "5", "--seed", "1"]
    command += ["--phases", "examples,coverage,fuzzing", "--no-color"]
    judge(command, written_down)


def test_openai(python: Path, real: str) -> None:
    said = judge([str(python), "openai_client.py", CHAT, EMBEDDER, SPEECH, VOICE], real)
    assert said.count("passed") == 7


def test_openai_with_tools(python: Path, written_down: str) -> None:
    assert judge([str(python), "openai_tools.py", CHAT], written_down).count("passed") == 2


def test_openai_for_javascript(written_down: str) -> None:
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    try:
        folder = judges_node_modules()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        reason = f"the packages of npm cannot be installed: {str(error.stderr or '')[-500:]}"
        pytest.skip(reason)
    command = ["node", "openai_client.mjs", str(folder), "org/tiny"]
    assert judge(command, written_down).count("passed") == 5


def test_the_document_runs(python: Path, real: str) -> None:
    text = (ROOT / "docs" / "openai.md").read_text()
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["sh", "python", "python"]
    for language, block in blocks:
        code = block.replace("http://localhost:50051", real)
        said = judge([str(python) if language == "python" else "bash", "-c", code], real)
        assert said.strip()
        if language == "sh":
            assert "data: [DONE]" in said
            assert '"embedding"' in said


def test_anthropic(python: Path, written_down: str) -> None:
    assert "passed" in judge([str(python), "anthropic_client.py", CHAT], written_down)


def test_litellm(python: Path, written_down: str) -> None:
    command = [str(python), "litellm_client.py", CHAT, EMBEDDER, "org/ranker"]
    assert "passed" in judge(command, written_down)


def test_langchain(python: Path, written_down: str) -> None:
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        "-rfE",
        "--noconftest",
        "-c",
        os.devnull,
        "--rootdir",
        ".",
    ]
    # One event loop for all, since langchain-openai keeps its connections.
    loops = ("asyncio_default_fixture_loop_scope", "asyncio_default_test_loop_scope")
    command += ["-o", "asyncio_mode=auto", *(f"-o{name}=session" for name in loops)]
    said = judge([*command, "langchain_suite.py"], written_down)
    assert "passed" in said
