"""Every command of README.md and CONTRIBUTING.md is run here, or is what runs this."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import free_port
from tests.support.stack import wait_for

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md")

# Command to the test that runs it.
COVERED = {
    "make demo": "test_make_demo",
    "make up": "test_make_up_and_down",
    "make down": "test_make_up_and_down",
    "curl -s http://127.0.0.1:9902/stats/prometheus": "test_make_up_and_down",
    "curl -s -X POST -H 'content-type: application/json' -d '{}' "
    "http://127.0.0.1:50051/ml.ModelManagementService/GetLoadedModels": "test_make_up_and_down",
    "docker compose --profile demo up": "tests/containers/test_main_job.py",
    "python3 ml_server.py --port 50051": "tests/chaos/test_main_job.py",
    "make rust": "tests/integration/test_rust_client.py",
    "cargo run --manifest-path clients/rust/Cargo.toml --example tour -- "
    "--picture models/pictures/astronaut.png": "tests/integration/test_rust_client.py",
    "make lint": "test_make_lint",
    # This test runs inside of it, and it cannot run without the other.
    "make test": "itself",
    "make setup": "itself",
}


def commands() -> Iterator[str]:
    """The lines of the shell blocks of the documents."""
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", (ROOT / document).read_text(), re.DOTALL):
            for line in block.splitlines():
                if line.strip() and not line.startswith("#"):
                    yield line.strip()


def test_every_command_is_covered() -> None:
    assert set(commands()) == set(COVERED)
    for place in COVERED.values():
        assert place == "itself" or place in globals() or (ROOT / place).exists(), place


def make(*arguments: str, timeout: float = 840) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"COLUMNS": "200"},
    )


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.mark.timeout(900)
def test_make_lint() -> None:
    result = make("lint")
    assert result.returncode == 0, result.stdout + result.stderr


def test_make_help_tells_every_target() -> None:
    told = make("help").stdout
    targets = ["up", "down", "demo", "test", "bench", "rust", "lint", "proto", "models", "clean"]
    for target in targets:
        assert re.search(rf"^\s+{target}\s+\w+", told, re.MULTILINE), target


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("models")
def test_make_demo(port: int) -> None:
    """The demonstration on a port of its own; its figures are those of real models."""
    (ROOT / "out" / "faces.png").unlink(missing_ok=True)
    result = make("demo", f"PORT={port}", f"DEMO=--json out/demo-{port}.json")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "The capital of France is Paris." in result.stdout
    summary = json.loads((ROOT / f"out/demo-{port}.json").read_text())
    (ROOT / f"out/demo-{port}.json").unlink()
    assert [step for step, _, _ in summary] == [
        "stack serving",
        "load the chat model",
        "load the embedding model",
        "embed",
        "chat",
        "detect faces",
        "every vision task",
        "list",
        "unload",
    ]
    assert len(list((ROOT / "out").glob("vision-*.mp4"))) >= 8
    assert (ROOT / "out" / "faces.png").stat().st_size > 100_000


@pytest.mark.usefixtures("models")
def test_make_up_and_down(port: int) -> None:
    process = subprocess.Popen(
        # The ports behind Envoy's lie where outgoing connections take theirs.
        ["make", "up", f"PORT={port}", "UP=--base-port auto"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        metrics = wait_for("the start", lambda: _addresses(port))["envoy_metrics"]
        page = _read(f"http://{metrics}/stats/prometheus", process)
        assert "envoy_server_live" in page
        path = "ml.ModelManagementService/GetLoadedModels"
        assert "models" in json.loads(_read(f"http://127.0.0.1:{port}/{path}", process, b"{}"))
        down = make("down")
        assert down.returncode == 0, down.stdout + down.stderr
        output, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
    for name in ("envoy", "model_mgmt_svc", "text_svc", "vision_svc", "provider"):
        assert re.search(rf"^{name}\s", output, re.MULTILINE), output
    assert str(port) in output


def _addresses(port: int) -> dict[str, str]:
    """Where everything listens, once the stack with this port has written it down."""
    with contextlib.suppress(OSError):
        addresses = json.loads((ROOT / "run" / "stack.json").read_text())["addresses"]
        return addresses if addresses["envoy"] == f"127.0.0.1:{port}" else {}
    return {}


def _read(url: str, process: subprocess.Popen[str], body: bytes | None = None) -> str:
    """GETs or POSTs until the service behind the address is up."""
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    for _ in range(600):
        assert process.poll() is None, process.communicate()[0]
        try:
            with urllib.request.urlopen(request, timeout=5) as page:
                return page.read().decode()
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} did not answer")
