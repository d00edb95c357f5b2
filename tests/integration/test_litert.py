"""LiteRT's files through text_svc: sandboxed processes, and files that are made to do harm."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from ml import transformers_pb2 as pb
from tests.support.folders import MakeFolder
from tests.support.optional_models import SHARED
from tests.support.text_service import READY, TextClient, TextService, text_service
from tests.support.tiny_tflite import Graph, Op, Tensor, adding, tflite

HAIR = SHARED / "models/hair_segmentation.tflite"
SMOLLM2 = SHARED / "models/smollm2-135m-instruct-w4.litertlm"


def tiled(*times: int) -> Graph:
    """Repeats its one number so often in each dimension."""
    ones = [1] * len(times)
    return Graph(
        tensors=[
            Tensor("x", ones),
            Tensor("times", data=np.array(times, np.int32)),
            Tensor("y", times),
        ],
        ops=[Op("TILE", ["x", "times"], ["y"], schema.TileOptionsT())],
        inputs=["x"],
        outputs=["y"],
    )


@pytest.fixture(scope="module")
def service(module_folder: MakeFolder) -> Iterator[TextService]:
    folder = module_folder("litert")
    files = {
        "tiny/adding/model.tflite": tflite(adding([-1, 4], 2)),
        "tiny/huge/model.tflite": tflite(tiled(1 << 14, 1 << 14, 16)),
        "tiny/overflow/model.tflite": tflite(tiled(1 << 20, 1 << 20, 1 << 20)),
        "tiny/damaged/model.tflite": tflite(adding([1, 4]))[:-200],
        "tiny/damaged/model.litertlm": b"LITERTLM" + bytes(100),
    }
    if SMOLLM2.exists():
        real = SMOLLM2.read_bytes()
        files["tiny/smollm2/model.litertlm"] = real
        at = real.index(b"TFL3")  # its weights have another root than their first table
        files["tiny/damaged/weights.litertlm"] = (
            real[: at - 4] + b"\xff\xff\xff\x7f" + real[at : at + (1 << 20)].ljust(len(real) - at)
        )
    for name, content in files.items():
        place = folder / "models" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    with text_service(folder / "models", folder) as started:
        yield started


def tensor(values: object) -> pb.Tensor:
    array = np.asarray(values, "<f4")
    return pb.Tensor(name="x", shape=array.shape, data=array.tobytes())


async def infer(client: TextClient, model: str, one: pb.Tensor) -> pb.Tensor:
    request = pb.InferRequest(model=model, tensors=pb.Tensors(tensors=[one]))
    answer = await client.text.Infer(request)
    return answer.tensors.tensors[0]


async def test_tensors_through_a_sandboxed_process(service: TextService) -> None:
    async with service.client() as client:
        _, model = await client.load("tiny/adding", "tflite", file="model.tflite", threads="1")
        assert model.state == READY
        file = service.models / "tiny/adding" / "model.tflite"
        assert model.weights_bytes == file.stat().st_size < model.ram_bytes < 200 << 20
        assert list((await infer(client, "tiny/adding", tensor(np.ones((2, 4))))).shape) == [2, 4]
        with pytest.raises(grpc.aio.AioRpcError, match=r"shape is \[2, 3\]; input 'x' has shape"):
            await infer(client, "tiny/adding", tensor(np.ones((2, 3))))
        await client.unload("tiny/adding")


@pytest.mark.parametrize(
    ("model", "pipeline", "file", "words"),
    [
        ("tiny/huge", "litert", "model.tflite", "memory|cannot load|takes more|ended"),
        ("tiny/overflow", "litert", "model.tflite", "overflow|memory|cannot"),
        ("tiny/damaged", "litert", "model.tflite", "cannot load model.tflite|not a .tflite file"),
        ("tiny/damaged", "text-generation", "model.litertlm", "is not a .litertlm file"),
        ("tiny/damaged", "text-generation", "weights.litertlm", "cannot load"),
        ("tiny/damaged", "litert", "absent.tflite", "absent.tflite"),
        ("tiny/damaged", "litert", "../../x.tflite", "it must be relative"),
    ],
)
async def test_files_that_harm_end_in_an_error_and_others_are_served(
    service: TextService, model: str, pipeline: str, file: str, words: str
) -> None:
    if file == "weights.litertlm" and not SMOLLM2.exists():
        pytest.skip(f"{SMOLLM2} is not here")
    async with service.client() as client:
        await client.load("tiny/adding", "litert", file="model.tflite")
        with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
            await client.load(model, pipeline, file=file)
        assert str(service.models.parent) not in str(caught.value.details())
        assert caught.value.code() in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.NOT_FOUND,
        )
        assert list((await infer(client, "tiny/adding", tensor(np.ones((1, 4))))).shape) == [1, 4]
    assert not service.children("text_svc.worker", f'"{model}"')


@pytest.mark.skipif(not SMOLLM2.exists(), reason=f"{SMOLLM2} is not here")
async def test_a_language_model_in_a_sandboxed_process(service: TextService) -> None:
    async with service.client() as client:
        _, model = await client.load("tiny/smollm2", file="model.litertlm")
        size = SMOLLM2.stat().st_size
        assert model.weights_bytes == size < model.ram_bytes
        assert model.ram_bytes == pytest.approx(service.held("tiny/smollm2")[1], rel=0.1)
        messages = [pb.ChatMessage(role="user", content="What is the capital of France?")]
        request = pb.ChatRequest(
            model="tiny/smollm2", messages=messages, temperature=0, max_tokens=20
        )
        seen = [each async for each in client.text.ChatCompletion(request)]
        assert "Paris" in "".join(each.content for each in seen)
        assert seen[-1].finish_reason == "stop"
        beside = {each.name for each in (service.models / "tiny/smollm2").iterdir()}
        assert beside == {"model.litertlm"}
        (worker,) = service.children("text_svc.worker", '"tiny/smollm2"')
        assert not any(connection.raddr for connection in worker.net_connections("inet"))
        await client.unload("tiny/smollm2")
