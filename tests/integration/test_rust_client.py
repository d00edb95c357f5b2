"""The Rust client of clients/rust: its own checks, and its programs against the real stack.

Building it takes a minute or two the first time.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml import common_pb2, model_management_pb2, model_management_pb2_grpc
from tests.bench.rust_client import MARKS, RustClient
from tests.support.rust import MANIFEST, cargo, has, programs
from tests.support.stack import CHAT, EMBEDDER, ROOT, Stack
from tools.cargo import NoCargoError, source_options

# A build from nothing on a machine that others use too.
pytestmark = pytest.mark.timeout(1800)

README = ROOT / "README.md"
TOUR = "cargo run --manifest-path clients/rust/Cargo.toml --example tour"
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module", autouse=True)
def crates() -> None:
    """Skips this module where cargo or the crates are missing."""
    try:
        source_options()
    except NoCargoError as error:
        pytest.skip(f"the Rust client cannot be built here: {error}")


def endpoint(stack: Stack) -> str:
    return f"http://{stack.addresses['envoy']}"


@pytest.fixture(scope="module")
def text_models(stack: Stack) -> Iterator[None]:
    """Both text models, which are unloaded at the end."""
    with stack.channel() as channel:
        stub = model_management_pb2_grpc.ModelManagementServiceStub(channel)
        for model in (CHAT, EMBEDDER):
            stub.LoadModel(model_management_pb2.LoadModelRequest(model_id=model))
        yield
        for loaded in stub.GetLoadedModels(common_pb2.EmptyRequest()).models:
            if loaded.model_id in (CHAT, EMBEDDER):
                request = model_management_pb2.UnloadModelRequest(model_id=loaded.model_id)
                stub.UnloadModel(request)


@pytest.fixture(scope="module")
def load_generator() -> RustClient:
    """As the benchmarks use it, but built without optimisation, as the tests are."""
    return RustClient(programs() / "loadgen")


def test_make_rust() -> None:
    """Formatting, clippy, and the tests and doc tests that need no services."""
    for component in ("clippy", "fmt"):
        if not has(component):
            pytest.skip(f"cargo {component} is not installed")
    result = subprocess.run(("make", "rust"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "test result: ok" in result.stdout


@pytest.mark.usefixtures("text_models")
def test_the_crate_against_the_services(stack: Stack, models: Path) -> None:
    output = cargo(
        *("test", "--manifest-path", MANIFEST, "--package", "ml-client"),
        *("--test", "services", "--", "--ignored"),
        ML_ENDPOINT=endpoint(stack),
        ML_PICTURES=str(models / "pictures"),
        ML_CHAT=CHAT,
    )
    passed = re.search(r"test result: ok. (\d+) passed", output)
    assert passed, output
    assert int(passed[1]) >= 9


@pytest.mark.usefixtures("text_models")
def test_text_plan(stack: Stack, load_generator: RustClient) -> None:
    """Callers at the same moment, each with the times of its messages."""
    for rpc in ("chat", "generate"):
        outcome = load_generator.run(
            "text",
            endpoint=endpoint(stack),
            rpc=rpc,
            model=CHAT,
            questions=[QUESTION, "Count from one to ten in words."],
            max_tokens=12,
            temperature=0.0,
        )
        assert len(outcome["callers"]) == 2
        for caller in outcome["callers"]:
            assert 0 < caller["tokens"] <= 12
            assert caller["messages"] == sorted(caller["messages"])
            assert 1 <= len(caller["messages"]) <= caller["tokens"] + 1
            assert caller["messages"][-1] <= outcome["seconds"]
            assert caller["finish_reason"] in ("stop", "length")
        if rpc == "chat":
            assert "Paris" in outcome["callers"][0]["text"]
    assert outcome["client_cpu_seconds"] > 0


@pytest.mark.usefixtures("text_models")
@pytest.mark.parametrize(("callers", "batch", "connections"), [(3, 1, 2), (1, 5, 1)])
def test_embeddings_plan(
    stack: Stack, load_generator: RustClient, callers: int, batch: int, connections: int
) -> None:
    """Without time to go on, each caller makes one call."""
    outcome = load_generator.run(
        "embeddings",
        endpoint=endpoint(stack),
        model=EMBEDDER,
        texts=["one sentence", "and another"],
        callers=callers,
        batch=batch,
        seconds=0.0,
        connections=connections,
    )
    assert len(outcome["latencies"]) == callers
    assert outcome["dimensions"] == 384
    assert 0 < max(outcome["latencies"]) <= outcome["seconds"]


def faces(stack: Stack, models: Path) -> dict[str, object]:
    """A video of one picture, in a file."""
    return {
        "endpoint": endpoint(stack),
        "rpc": "StreamFaceDetection",
        "files": [str(models / "pictures" / "astronaut.png")],
        "format": "png",
        "width": 512,
        "height": 512,
    }


def test_video_plan(stack: Stack, models: Path, load_generator: RustClient) -> None:
    """All streams have had six answers before the measured time begins."""
    marks: list[str] = []
    outcome = load_generator.run(
        "video",
        marks.append,
        source=faces(stack, models),
        streams=2,
        in_flight=4,
        seconds=0.5,
        warm_up=5,
    )
    assert tuple(marks) == MARKS
    assert outcome["seconds"] >= 0.5
    assert all(latency > 0 for latency in outcome["latencies"])


def test_paced_video_plan(stack: Stack, models: Path, load_generator: RustClient) -> None:
    outcome = load_generator.run(
        "paced_video", source=faces(stack, models), fps=30.0, frames=15, warm_up=0
    )
    assert 1 <= len(outcome["ages"]) <= 15
    assert min(outcome["ages"]) > 0


def test_a_failed_plan_says_why(
    stack: Stack, models: Path, load_generator: RustClient, tmp_path: Path
) -> None:
    plan = {"fps": 30.0, "frames": 1, "warm_up": 0}
    with pytest.raises(RuntimeError, match="no RPC StreamNoses"):
        load_generator.run(
            "paced_video", source=faces(stack, models) | {"rpc": "StreamNoses"}, **plan
        )
    (tmp_path / "frame").write_bytes(b"no picture")
    broken = faces(stack, models) | {"files": [str(tmp_path / "frame")]}
    with pytest.raises(RuntimeError, match="UNDECODABLE_IMAGE"):
        load_generator.run("paced_video", source=broken, **plan)


def test_the_tour(stack: Stack) -> None:
    """The example as README has it, with the stack's address."""
    line = next(each for each in README.read_text().splitlines() if each.startswith(TOUR))
    output = cargo(*shlex.split(line)[1:], "--endpoint", endpoint(stack))
    assert re.search(rf"^loaded {re.escape(CHAT)}: [1-9]\d* MiB$", output, re.MULTILINE), output
    assert "3 embeddings of length 384" in output
    cosines = [float(value) for value in re.findall(r"^(-?\d\.\d{3}) \w", output, re.MULTILINE)]
    assert cosines[0] == 1.0
    assert cosines[1] > 0.5 > cosines[2]
    assert re.search(r"^assistant: .*Paris", output, re.MULTILINE), output
    assert "faces: 1" in output
    assert output.count("unloaded ") == 2
    with stack.channel() as channel:
        stub = model_management_pb2_grpc.ModelManagementServiceStub(channel)
        left = {each.model_id for each in stub.GetLoadedModels(common_pb2.EmptyRequest()).models}
    assert not left & {CHAT, EMBEDDER}
