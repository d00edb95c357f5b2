"""Each row of the contract's status table, through Envoy, with the details that a program reads."""

from __future__ import annotations

import io
import struct
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image

from ml import common_pb2, mediapipe_pb2_grpc, model_management_pb2_grpc, transformers_pb2_grpc
from ml.mediapipe_pb2 import ImageRequest, VideoFrame
from ml.model_management_pb2 import LoadModelRequest, ModelFileRequest, UnloadModelRequest
from ml.transformers_pb2 import ChatMessage, ChatRequest, GenerateEmbeddingsRequest, TextRequest
from tests.support.stack import ROOT, Stack, wait_for

CHAT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
CODE = grpc.StatusCode


class Stubs:
    """All three services, through Envoy."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.models = model_management_pb2_grpc.ModelManagementServiceStub(channel)
        self.text = transformers_pb2_grpc.TransformersServiceStub(channel)
        self.vision = mediapipe_pb2_grpc.MediapipeServiceStub(channel)


@pytest.fixture(scope="module")
def stubs(stack: Stack) -> Iterator[Stubs]:
    with stack.channel() as channel:
        stubs = Stubs(channel)
        for model, pipeline in ((CHAT_MODEL, "text-generation"), (EMBEDDER, "feature-extraction")):
            stubs.models.LoadModel(LoadModelRequest(model_id=model, pipeline_type=pipeline))
        yield stubs


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    """Code, message and details by name of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        answer = call()
        if hasattr(answer, "__next__"):
            list(answer)
    error = caught.value
    status = rpc_status.from_call(error)
    assert status is not None, f"{error.code()} has no details: {error.details()}"
    details = {}
    for packed in status.details:
        for kind in ("ErrorInfo", "BadRequest", "RetryInfo"):
            message = getattr(error_details_pb2, kind)()
            if packed.Unpack(message):
                details[kind] = message
    text = error.details()
    assert "Traceback" not in text
    assert str(ROOT) not in text
    assert tempfile.gettempdir() not in text
    return error.code(), text, details


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with next to nothing behind it."""
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", body) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (320, 240), "red").save(buffer, "jpeg")
    return buffer.getvalue()


def image(data: bytes, kind: str = "png", width: int = 0, height: int = 0) -> ImageRequest:
    return ImageRequest(image_data=data, format=kind, width=width, height=height)


def frame(data: bytes, kind: str, width: int = 0, height: int = 0) -> VideoFrame:
    return VideoFrame(frame_data=data, format=kind, width=width, height=height)


BAD_IDS = (
    *("../etc/passwd", "/etc/passwd", "a/../../b", "org/..", "..", "a\\b", "org/na\x00me"),
    *("org//name", "org/.hidden/../x", "x" * 5000, "org/name\n", "~root", "C:\\x"),
)
BAD_PATHS = (
    "../secret",
    "/etc/passwd",
    "a/../../../b",
    "a\\..\\b",
    "x\x00y",
    "",
    "a/./../..",
    "C:/x",
)


@pytest.mark.parametrize("model_id", BAD_IDS)
@pytest.mark.parametrize("rpc", ["LoadModel", "UnloadModel", "GetModelFile"])
def test_malformed_ids(stubs: Stubs, rpc: str, model_id: str) -> None:
    request = {
        "LoadModel": LoadModelRequest(model_id=model_id, pipeline_type="text-generation"),
        "UnloadModel": UnloadModelRequest(model_id=model_id),
        "GetModelFile": ModelFileRequest(model_id=model_id, file_path="config.json"),
    }[rpc]
    code, _, details = refused(lambda: getattr(stubs.models, rpc)(request))
    assert code is CODE.INVALID_ARGUMENT
    assert details["BadRequest"].field_violations[0].field == "model_id"


@pytest.mark.parametrize("path", BAD_PATHS)
def test_malformed_paths(stubs: Stubs, path: str) -> None:
    request = ModelFileRequest(model_id=EMBEDDER, file_path=path)
    code, _, details = refused(lambda: stubs.models.GetModelFile(request))
    assert code is CODE.INVALID_ARGUMENT
    assert details["BadRequest"].field_violations[0].field == "file_path"


def test_invalid_load_requests(stubs: Stubs) -> None:
    def load(**fields: Any) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
        return refused(lambda: stubs.models.LoadModel(LoadModelRequest(**fields)))

    code, text, details = load(model_id=EMBEDDER, pipeline_type="mind-reading")
    assert code is CODE.INVALID_ARGUMENT
    assert "text-generation" in text, "the message lists what is accepted"
    assert details["ErrorInfo"].reason == "UNKNOWN_PIPELINE"
    code, text, details = load(
        model_id="Other/name", pipeline_type="text-generation", options={"turbo": "yes"}
    )
    assert code in (CODE.INVALID_ARGUMENT, CODE.NOT_FOUND), text
    code, text, details = load(model_id="prajjwal1/absent", pipeline_type="text-generation")
    assert code is CODE.NOT_FOUND
    assert details["ErrorInfo"].reason == "MODEL_NOT_FOUND"
    code, _, details = load(model_id=EMBEDDER, pipeline_type="text-generation")
    assert code is CODE.FAILED_PRECONDITION
    assert details["ErrorInfo"].reason == "PIPELINE_MISMATCH"


def test_loading_twice_is_success_with_the_same_figures(stubs: Stubs) -> None:
    request = LoadModelRequest(model_id=EMBEDDER, pipeline_type="feature-extraction")
    first, second = stubs.models.LoadModel(request), stubs.models.LoadModel(request)
    assert first.success
    assert second.success
    assert "openvino" in first.message, "the message says what runs it"
    assert first.weights_mb == second.weights_mb > 0
    assert min(first.ram_allocated_mb, second.ram_allocated_mb) > first.weights_mb
    hinted = stubs.models.LoadModel(LoadModelRequest(model_id=f"models/{EMBEDDER}/config.json"))
    assert hinted.success, "config.json says what the model is for"


def test_text_requests(stubs: Stubs) -> None:
    text, hello = stubs.text, [ChatMessage(role="user", content="hello")]
    invalid: list[tuple[Callable[[], Any], str]] = [
        (lambda: text.GenerateText(TextRequest(model=CHAT_MODEL)), "prompt"),
        (lambda: text.GenerateText(TextRequest(prompt="x")), "model"),
        (lambda: text.GenerateText(TextRequest(prompt="x", model="..")), "model"),
        (
            lambda: text.GenerateText(TextRequest(prompt="x", model=CHAT_MODEL, max_length=-1)),
            "max_length",
        ),
        (
            lambda: text.GenerateText(
                TextRequest(prompt="x", model=CHAT_MODEL, temperature=float("nan"))
            ),
            "temperature",
        ),
        (
            lambda: text.GenerateText(TextRequest(prompt="x", model=CHAT_MODEL, top_p=1.5)),
            "top_p",
        ),
        (lambda: text.GenerateText(TextRequest(prompt="x " * 20000, model=CHAT_MODEL)), "prompt"),
        (lambda: text.ChatCompletion(ChatRequest(model=CHAT_MODEL)), "messages"),
        (
            lambda: text.ChatCompletion(
                ChatRequest(model=CHAT_MODEL, messages=[ChatMessage(role="wizard", content="x")])
            ),
            "messages[0].role",
        ),
        (
            lambda: text.ChatCompletion(
                ChatRequest(model=CHAT_MODEL, messages=hello, temperature=-1)
            ),
            "temperature",
        ),
        (
            lambda: text.ChatCompletion(
                ChatRequest(model=CHAT_MODEL, messages=hello), metadata=[("greedy", "yes")]
            ),
            "greedy",
        ),
        (lambda: text.GenerateEmbeddings(GenerateEmbeddingsRequest(model=EMBEDDER)), "texts"),
    ]
    for call, field in invalid:
        code, message, details = refused(call)
        assert code is CODE.INVALID_ARGUMENT, (field, message)
        assert details["BadRequest"].field_violations[0].field == field, message
    for call, reason in (
        (lambda: text.GenerateText(TextRequest(prompt="x", model="no/model")), "MODEL_NOT_LOADED"),
        (lambda: text.GenerateText(TextRequest(prompt="x", model=EMBEDDER)), "PIPELINE_MISMATCH"),
        (
            lambda: text.GenerateEmbeddings(
                GenerateEmbeddingsRequest(model=CHAT_MODEL, texts=["x"])
            ),
            "PIPELINE_MISMATCH",
        ),
    ):
        code, message, details = refused(call)
        assert code is CODE.FAILED_PRECONDITION, message
        assert details["ErrorInfo"].reason == reason
    code, message, details = refused(
        lambda: text.GenerateEmbeddings(
            GenerateEmbeddingsRequest(model=EMBEDDER, texts=["x"] * 10_000)
        )
    )
    assert code is CODE.RESOURCE_EXHAUSTED
    assert any(character.isdigit() for character in message), "the message tells the limit"


def test_pictures(stubs: Stubs) -> None:
    bad = [
        image(b""),
        image(b"not a picture"),
        image(jpeg()[:200], "jpeg"),
        image(jpeg(), "tiff"),
        image(jpeg(), ""),
        image(bytes(100), "raw", 10, 10),
        image(bytes(300), "raw", -10, -10),
        image(bytes(300), "raw"),
        image(bytes(300), "raw", 2**31 - 1, 2**31 - 1),
    ]
    for request in bad:
        code, message, _ = refused(partial(stubs.vision.DetectFaces, request))
        assert code in (CODE.INVALID_ARGUMENT, CODE.RESOURCE_EXHAUSTED), message
    for request in (
        frame(bytes(10), "rgb", 4, 4),
        frame(bytes(64), "h265", 4, 4),
        frame(jpeg()[:100], "jpeg"),
        frame(bytes(24), "yuv420", -4, 4),
    ):
        stream = partial(stubs.vision.StreamFaceDetection, iter([request]))
        code, message, _ = refused(stream)
        assert code is CODE.INVALID_ARGUMENT, message


def test_a_png_that_claims_50000_by_50000_costs_nothing(stubs: Stubs, stack: Stack) -> None:
    process = psutil.Process(stack.pids["vision_svc"])
    stubs.vision.DetectFaces(image(jpeg(), "jpeg"))  # the first call makes its task object
    before = process.memory_info().rss
    for _ in range(5):
        code, message, _ = refused(
            lambda: stubs.vision.DetectFaces(image(png_header(50_000, 50_000)))
        )
        assert code is CODE.RESOURCE_EXHAUSTED, message
        assert any(character.isdigit() for character in message)
    assert process.memory_info().rss - before < 50 << 20
    assert stubs.vision.DetectFaces(image(jpeg(), "JPG")).faces == []


def test_a_message_over_the_limit(stubs: Stubs) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stubs.vision.DetectFaces(image(bytes(65 << 20), "jpeg"))
    assert caught.value.code() is CODE.RESOURCE_EXHAUSTED


def test_a_deadline_stops_the_work(stubs: Stubs, stack: Stack) -> None:
    # Greedy counting goes on for as long as it may.
    tokens = 4000
    request = TextRequest(
        model=CHAT_MODEL, prompt="1, 2, 3, 4, 5, 6, 7, 8,", max_length=tokens, temperature=0
    )
    steps = _metric(stack, "text_batch_answers_count")
    with pytest.raises(grpc.RpcError) as caught:
        list(stubs.text.GenerateText(request, timeout=1))
    assert caught.value.code() is CODE.DEADLINE_EXCEEDED
    cancelled = stubs.text.GenerateText(request)
    next(cancelled)
    cancelled.cancel()
    wait_for("the end of the work", lambda: _metric(stack, "text_running_answers") == 0)
    # It ended before it was done: a step makes a token.
    assert _metric(stack, "text_batch_answers_count") - steps < tokens
    assert stubs.models.GetLoadedModels(common_pb2.EmptyRequest()).models


def _metric(stack: Stack, name: str) -> float:
    """The value of the chat model's sample on the page of text_svc; 0 if there is none."""
    with urllib.request.urlopen(f"http://{stack.addresses['text_metrics']}/metrics") as page:
        for line in page.read().decode().splitlines():
            if line.startswith(f"{name}{{") and f'model="{CHAT_MODEL}"' in line:
                return float(line.rpartition(" ")[2])
    return 0.0


def test_unloading_what_is_not_loaded(stubs: Stubs) -> None:
    code, _, details = refused(
        lambda: stubs.models.UnloadModel(UnloadModelRequest(model_id="no/model"))
    )
    assert code is CODE.FAILED_PRECONDITION
    assert details["ErrorInfo"].reason == "MODEL_NOT_LOADED"


def test_a_file_that_is_not_there(stubs: Stubs) -> None:
    request = ModelFileRequest(model_id=EMBEDDER, file_path="absent.json")
    code, _, details = refused(lambda: stubs.models.GetModelFile(request))
    assert code is CODE.NOT_FOUND
    assert details["ErrorInfo"].reason == "FILE_NOT_FOUND"
