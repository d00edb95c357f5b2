"""The documents: their commands are run here or by the tests named here, their links resolve."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import vision as demo_vision
from tests.support.optional_models import missing_models
from tests.support.processes import free_port
from tests.support.stack import CONVERTED, wait_for

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "clients" / "rust").glob("*.md")),
    *sorted((ROOT / "clients" / "rust").glob("*/*.md")),
)
MAX_README_LINES = 150

# What is made by running something, and so is not in a fresh clone.
GENERATED = ("models/", "run/", "out/", "ml/", ".blobs/", ".quarantine/")
# What has the form of a path and is none of the repository's.
NO_PATHS = {
    *("org/name", "models/org/name/model.safetensors"),
    *("config.json", "modules.json", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "tekken.json", "sentence_bert_config.json"),
    "config_sentence_transformers.json",
    "facebook/detr-resnet-50",
    *("models.toml", "desired_models.json", "lease-EPOCH.json"),
}
# The models that are fetched: their ids have the form of paths too.
ASSETS = (ROOT / "tools/models/assets.toml").read_text()
# A path in backticks: with a slash, or a file by its name alone.
PATH = re.compile(r"(?:[\w.{},-]+/)+[\w.{},-]*|[\w.-]+\.(?:py|md|ya?ml|toml|proto|sh|rs|json|svg)")

# Command to the test that runs it.
COVERED = {
    "make demo": "test_make_demo",
    "make up": "test_make_up_and_down",
    "make down": "test_make_up_and_down",
    "curl -s http://127.0.0.1:9902/stats/prometheus": "test_make_up_and_down",
    "curl -s -X POST -H 'content-type: application/json' -d '{}' "
    "http://127.0.0.1:50051/ml.ModelManagementService/GetLoadedModels": "test_make_up_and_down",
    ".venv/bin/python -m stack drain text": "test_make_up_and_down",
    ".venv/bin/python -m stack drain text --undo": "test_make_up_and_down",
    'curl -sN http://localhost:50051/v1/chat/completions -d \'{ "model": '
    '"HuggingFaceTB/SmolLM2-135M-Instruct", "messages": [{"role": "user", "content": "Say '
    'hello."}], "max_tokens": 16, "stream": true }\'': "tests/judges/test_judges.py",
    'curl -s http://localhost:50051/v1/embeddings -d \'{ "model": '
    '"sentence-transformers/all-MiniLM-L6-v2", "input": ["a cat", "a dog"] }\'': "tests/judges/"
    "test_judges.py",
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
    """The commands of the shell blocks of the documents; one may have a text of several lines."""
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL):
            for command in re.findall(r"(?m)^ *(?:[^\n'#]|'[^']*')(?:[^\n']|'[^']*')*$", block):
                yield " ".join(command.split())


def prose(document: Path) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def alternatives(path: str) -> list[str]:
    """A path with {a,b} as the paths that it stands for."""
    if not (braces := re.search(r"\{([^{}]*)\}", path)):
        return [path]
    before, after = path[: braces.start()], path[braces.end() :]
    return [
        each for word in braces[1].split(",") for each in alternatives(f"{before}{word}{after}")
    ]


def known_names() -> set[str]:
    """The names of the files in the repository's folders."""
    names: set[str] = set()
    for folder in (each for each in ROOT.iterdir() if each.is_dir()):
        if not folder.name.startswith(".") and f"{folder.name}/" not in GENERATED:
            names |= {path.name for path in folder.rglob("*.*")}
    return names


def test_every_command_is_covered() -> None:
    """Those of `ml` are run by test_cli.py, as they stand in the documents."""
    assert {each for each in commands() if not re.search(r"\bml [a-z]", each)} == set(COVERED)
    for place in COVERED.values():
        assert place == "itself" or place in globals() or (ROOT / place).exists(), place


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= MAX_README_LINES


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_resolves(document: Path) -> None:
    """Files and anchors; addresses on the net are not asked."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_exists(document: Path) -> None:
    """Paths in backticks, from the repository's root or from the document's folder."""
    names = known_names()
    for text in re.findall(r"`([^`\n]+)`", prose(document)):
        if not PATH.fullmatch(text) or text.startswith(GENERATED) or text in NO_PATHS:
            continue
        if f'"text/{text}' in ASSETS:
            continue
        for path in alternatives(text):
            found = (ROOT / path).exists() or (document.parent / path).exists()
            assert found or path in names, f"{document.name} names {text}"


def make(*arguments: str, timeout: float = 840) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        # What another test has converted is not converted again.
        env=os.environ | {"COLUMNS": "200", "TEXT_CONVERTED_DIR": str(CONVERTED)},
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
def test_make_demo(models: Path, port: int) -> None:
    """The demonstration on a port of its own; its figures are those of real models.

    It shows every vision task, but hair where its model could not be had.
    """
    missing = missing_models(models)
    (ROOT / "out" / "faces.png").unlink(missing_ok=True)
    for old in (ROOT / "out").glob("vision-*.mp4"):
        old.unlink()
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
        "a .tflite",
        "chat with a .litertlm",
        "detect faces",
        "every vision task",
        "list",
        "unload",
    ]
    tasks = set(demo_vision.TASKS)
    if "hair_segmenter.tflite" in missing:
        tasks.remove("hair")
        assert re.search("hair: off: .*hair_segmenter.tflite", result.stdout), result.stdout
    clips = {path.stem.removeprefix("vision-") for path in (ROOT / "out").glob("vision-*.mp4")}
    assert clips == tasks
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
        drain = [sys.executable, "-m", "stack", "drain", "text"]
        wait_for("the drain", lambda: subprocess.run(drain, cwd=ROOT, check=False).returncode == 0)
        subprocess.run([*drain, "--undo"], cwd=ROOT, check=True)
        down = make("down")
        assert down.returncode == 0, down.stdout + down.stderr
        output, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
    for name in ("envoy", "model_mgmt_svc", "text_svc", "vision_svc", "http_svc", "provider"):
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
