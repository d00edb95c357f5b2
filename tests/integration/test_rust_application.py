"""The calls of the Rust application, played by clients/rust/application: all of them are served.

It is generated from the contract as the application knows it, and begins as soon as Envoy listens.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support import tiny_models, tiny_text
from tests.support.folders import MakeFolder
from tests.support.rust import programs
from tests.support.stack import Stack, stack_in, wait_for
from tools.cargo import NoCargoError

pytestmark = pytest.mark.timeout(1800)  # a build from nothing, on a machine that others use too

LANGUAGE = "tiny/llama"
# As the application asks for models: ids, types and hints are its own, the models are tiny.
MODELS = {
    "microsoft/Florence-2-base": ("florence2", "image-to-text", "florence2"),
    "openai/whisper-tiny": ("whisper", "automatic-speech-recognition", "whisper"),
    "openai/clip-vit-base-patch32": ("clip", "zero-shot-image-classification", "clip"),
    "BAAI/bge-small-en": ("bert", "embedding", "generic"),
}
GENERATE = "/ml.TransformersService/GenerateText"


@pytest.fixture(scope="module")
def program() -> Path:
    """The program, built; skips where cargo or the crates are missing."""
    try:
        return programs() / "application"
    except NoCargoError as error:
        pytest.skip(f"the application cannot be built here: {error}")


@pytest.fixture(scope="module")
def fresh_stack(program: Path, models: Path, module_folder: MakeFolder) -> Iterator[Stack]:
    """A stack whose Envoy listens, and whose services are starting."""
    folder = module_folder("application")
    for model_id, (kind, *_) in MODELS.items():
        tiny_models.build(kind, folder / "models" / "text" / model_id)
    tiny_text.save_llama(folder / "models" / "text" / LANGUAGE)
    (folder / "models" / "vision").symlink_to(models / "vision")
    with stack_in(folder / "run", "--models", str(folder / "models")) as running:
        yield running


@pytest.fixture(scope="module")
def seen(program: Path, fresh_stack: Stack) -> dict[str, Any]:
    """What the application saw."""
    asked = [(LANGUAGE, "text-generation", "")]
    asked += [(model_id, *names) for model_id, (_, *names) in MODELS.items()]
    fields = ("id", "pipeline_type", "architecture")
    plan = {
        "endpoint": f"http://{fresh_stack.addresses['envoy']}",
        "models": [dict(zip(fields, each, strict=True)) for each in asked],
        "language": LANGUAGE,
        "embeddings": "BAAI/bge-small-en",
    }
    done = subprocess.run(
        program, input=json.dumps(plan), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    saw: dict[str, Any] = json.loads(done.stdout)
    return saw


def test_models_are_loaded_as_they_are_asked_for(seen: dict[str, Any]) -> None:
    """From the first second on: the first load reaches services that are starting."""
    for model_id, load in zip((LANGUAGE, *MODELS), seen["loads"], strict=True):
        assert (load["success"], load["code"]) == (True, 0), (model_id, load)
        assert load["ram_mb"] > 0
    assert {model_id for model_id, _ in seen["loaded"]} == {LANGUAGE, *MODELS}
    assert seen["unloads"] == [True] * len(seen["loads"])
    assert seen["left"] == []


def test_texts_end_with_one_empty_message(seen: dict[str, Any]) -> None:
    generated = seen["generated"]
    assert generated["done"]
    assert 1 <= generated["tokens"] <= 512
    assert 2 <= generated["messages"] <= generated["tokens"] + 1
    assert generated["text"]
    for chat in seen["chats"]:
        assert chat["done"]
        assert chat["finish_reason"] in ("stop", "length")
        assert chat["text"]


def test_the_other_services_answer(seen: dict[str, Any]) -> None:
    assert len(seen["embeddings"]) == 2
    assert len(set(seen["embeddings"])) == 1
    assert seen["no_picture"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_a_stream_that_is_dropped_at_its_last_message_is_no_failure(
    seen: dict[str, Any], fresh_stack: Stack
) -> None:
    def lines() -> list[dict[str, Any]]:
        return [line for line in fresh_stack.access_log() if line.get("path") == GENERATE]

    (line,) = wait_for("a line of the access log", lines)
    # "0" when the trailers were faster than the caller.
    assert line["grpc_code"] in (None, "0")
    logged = (fresh_stack.logs / "text_svc.log").read_text()
    ends = [json.loads(each) for each in logged.splitlines() if '"GenerateText"' in each]
    assert [each["grpc_code"] for each in ends] == ["OK"]
