"""Models that callers load: LoadModel replaces the model of a task."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from ml import mediapipe_pb2 as pb
from ml.internal import worker_pb2, worker_pb2_grpc
from tests.integration.vision.conftest import Vision, running_vision
from tests.support.folders import MakeFolder
from tests.support.providers import Provider, chunks
from tests.support.vision_frames import encode_still, rgb_frames
from tools import vision_clips

MODEL = "someone/their-face-model"
ASSET = "blaze_face_short_range.tflite"
OBJECTS, OBJECT_ASSET = "someone/their-objects", "object_detector.tflite"


# One loop for all, as they share the provider and the service.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(vision_models: Path) -> AsyncIterator[Provider]:
    files = {
        f"{MODEL}/{ASSET}": (vision_models / ASSET).read_bytes(),
        f"{MODEL}/other/full.tflite": (
            vision_models / "blaze_face_full_range_sparse.tflite"
        ).read_bytes(),
        "someone/broken/" + ASSET: b"no model at all" * 1000,
        f"{OBJECTS}/{OBJECT_ASSET}": (vision_models / OBJECT_ASSET).read_bytes(),
    }
    async with Provider(files).running() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    provider: Provider, module_folder: MakeFolder
) -> AsyncIterator[tuple[Vision, Path]]:
    """A service whose own models folder is empty, and its cache."""
    empty, cache = module_folder("empty"), module_folder("cache")
    with ExitStack() as cleanup:
        started = running_vision(
            model_dir=str(empty), file_provider_addr=provider.address, cache_dir=str(cache)
        )
        yield await asyncio.to_thread(cleanup.enter_context, started), cache


@pytest_asyncio.fixture(loop_scope="module")
async def bare(provider: Provider, service: tuple[Vision, Path]) -> AsyncIterator[Vision]:
    """The service without a model, in memory or in its cache."""
    vision, cache = service
    provider.behaviours, provider.cancelled = [], 0
    yield vision
    async with grpc.aio.insecure_channel(vision.address) as channel:
        worker = worker_pb2_grpc.ModelWorkerStub(channel)
        for model in (await worker.List(worker_pb2.ListRequest())).models:
            await worker.Unload(worker_pb2.UnloadRequest(model_id=model.model_id))
    for entry in cache.iterdir():
        shutil.rmtree(entry)


@pytest_asyncio.fixture(loop_scope="module")
async def worker(bare: Vision) -> AsyncIterator[worker_pb2_grpc.ModelWorkerStub]:
    async with grpc.aio.insecure_channel(bare.address) as channel:
        yield worker_pb2_grpc.ModelWorkerStub(channel)


async def load(
    worker: worker_pb2_grpc.ModelWorkerStub,
    model_id: str = MODEL,
    pipeline_type: str = "face-detection",
    **options: str,
) -> list[worker_pb2.LoadResponse]:
    request = worker_pb2.LoadRequest(
        model_id=model_id, pipeline_type=pipeline_type, options=options
    )
    return [response async for response in worker.Load(request)]


async def detect(vision: Vision) -> pb.FaceDetectionResponse:
    data, _ = encode_still(vision_clips.astronaut(), "jpeg")
    request = pb.ImageRequest(image_data=data, format="jpeg")
    return await asyncio.to_thread(vision.stub.DetectFaces, request)


async def test_a_model_from_the_provider_serves_its_task(
    bare: Vision, worker: worker_pb2_grpc.ModelWorkerStub, vision_models: Path
) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        await detect(bare)
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION

    responses = await load(worker)
    states = [response.state for response in responses]
    assert states[0] == worker_pb2.MODEL_STATE_FETCHING
    assert states[-2:] == [worker_pb2.MODEL_STATE_LOADING, worker_pb2.MODEL_STATE_READY]
    size = (vision_models / ASSET).stat().st_size
    assert max(response.bytes_fetched for response in responses) == size
    model = responses[-1].model
    assert (model.model_id, model.pipeline_type) == (MODEL, "face-detection")
    assert model.ram_bytes == size
    assert model.loaded_at > 0

    assert len((await detect(bare)).faces) == 1
    (listed,) = (await worker.List(worker_pb2.ListRequest())).models
    assert listed.last_used_at > 0
    assert listed.ram_bytes > model.ram_bytes  # an instance waits for the next picture
    assert listed.weights_bytes == model.weights_bytes == size
    (again,) = await load(worker)
    for each in (model, listed, again.model):
        each.ClearField("last_used_at")
        each.ClearField("idle_seconds")
        each.ram_bytes = size
        assert each == model

    await worker.Unload(worker_pb2.UnloadRequest(model_id=MODEL))
    assert not (await worker.List(worker_pb2.ListRequest())).models
    with pytest.raises(grpc.RpcError):
        await detect(bare)


async def test_a_stream_keeps_the_model_that_it_began_with(
    bare: Vision, worker: worker_pb2_grpc.ModelWorkerStub
) -> None:
    await load(worker)
    frames = list(rgb_frames(vision_clips.moving(vision_clips.astronaut(), 6)))
    unloaded = asyncio.Event()
    loop = asyncio.get_running_loop()

    def sender():
        yield from frames[:3]
        asyncio.run_coroutine_threadsafe(unloaded.wait(), loop).result(60)
        yield from frames[3:]

    call = bare.stub.StreamFaceDetection(sender())
    first = await asyncio.to_thread(next, call)
    await worker.Unload(worker_pb2.UnloadRequest(model_id=MODEL))
    unloaded.set()
    rest = await asyncio.to_thread(list, call)
    assert all(answer.faces for answer in [first, *rest])
    assert len(rest) == 5


async def test_a_file_by_its_path(bare: Vision, worker: worker_pb2_grpc.ModelWorkerStub) -> None:
    responses = await load(worker, file="other/full.tflite")
    assert responses[-1].state == worker_pb2.MODEL_STATE_READY
    assert len((await detect(bare)).faces) == 1


@pytest.mark.parametrize(
    ("pipeline_type", "rpc"),
    [
        ("object-detector", "StreamObjectDetection"),
        ("object-tracking", "StreamObjectTracking"),
    ],
)
async def test_an_object_detector_of_the_application(
    bare: Vision, worker: worker_pb2_grpc.ModelWorkerStub, pipeline_type: str, rpc: str
) -> None:
    frames = list(rgb_frames(vision_clips.moving(vision_clips.cat(), 3)))

    def found() -> list[list[str]]:
        answers = getattr(bare.stub, rpc)(iter(frames))
        return [[each.label.lower() for each in answer.objects] for answer in answers]

    with pytest.raises(grpc.RpcError) as raised:
        await asyncio.to_thread(found)
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as raised:  # a model of faces has no scores of labels
        await load(worker, MODEL, pipeline_type, file=ASSET)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    responses = await load(worker, OBJECTS, pipeline_type)
    assert responses[-1].state == worker_pb2.MODEL_STATE_READY
    assert await asyncio.to_thread(found) == [["cat"]] * 3


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"model_id": "someone/broken"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"model_id": "someone/nothing"}, grpc.StatusCode.NOT_FOUND),
        ({"model_id": "../up"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"pipeline_type": "text-generation"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"options": {"file": "../../x"}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"options": {"colour": "blue"}}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_loads_that_fail_leave_nothing(
    bare: Vision,
    worker: worker_pb2_grpc.ModelWorkerStub,
    request_: dict[str, object],
    code: grpc.StatusCode,
) -> None:
    request = {"model_id": MODEL, "pipeline_type": "face-detection"} | request_
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        [response async for response in worker.Load(worker_pb2.LoadRequest(**request))]
    assert raised.value.code() is code
    assert not (await worker.List(worker_pb2.ListRequest())).models
    await load(worker)
    assert len((await detect(bare)).faces) == 1


async def test_one_model_a_task(bare: Vision, worker: worker_pb2_grpc.ModelWorkerStub) -> None:
    await load(worker)
    for model_id, task in ((MODEL, "face-mesh"), ("someone/broken", "face-detection")):
        request = worker_pb2.LoadRequest(model_id=model_id, pipeline_type=task)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            [response async for response in worker.Load(request)]
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert MODEL in (raised.value.details() or "")


async def test_unloading_a_model_that_is_not_loaded(
    worker: worker_pb2_grpc.ModelWorkerStub,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await worker.Unload(worker_pb2.UnloadRequest(model_id=MODEL))
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_unloading_ends_a_load(
    bare: Vision, worker: worker_pb2_grpc.ModelWorkerStub, provider: Provider
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(
        provider: Provider, request: object, content: bytes, context: object
    ) -> AsyncIterator[object]:
        asked.set()
        await go_on.wait()
        for chunk in chunks(content):
            yield chunk

    provider.behaviours = [slow]
    loading = asyncio.create_task(load(worker))
    await asyncio.wait_for(asked.wait(), 60)
    (model,) = (await worker.List(worker_pb2.ListRequest())).models
    assert model.state == worker_pb2.MODEL_STATE_FETCHING
    await worker.Unload(worker_pb2.UnloadRequest(model_id=MODEL))
    go_on.set()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await loading
    assert raised.value.code() is grpc.StatusCode.CANCELLED
    assert not (await worker.List(worker_pb2.ListRequest())).models
    with pytest.raises(grpc.RpcError):
        await detect(bare)
    await load(worker)
    assert len((await detect(bare)).faces) == 1


async def test_a_load_that_is_cancelled_leaves_nothing(
    bare: Vision, worker: worker_pb2_grpc.ModelWorkerStub, provider: Provider
) -> None:
    async def stuck(
        provider: Provider, request: object, content: bytes, context: object
    ) -> AsyncIterator[object]:
        yield chunks(content)[0]
        await asyncio.Event().wait()

    provider.behaviours = [stuck]
    request = worker_pb2.LoadRequest(model_id=MODEL, pipeline_type="face-detection")
    call = worker.Load(request)
    await call.read()
    while provider.behaviours:  # until the provider has begun to send
        await asyncio.sleep(0.02)
    call.cancel()

    async def nothing_left() -> None:
        while (await worker.List(worker_pb2.ListRequest())).models or not provider.cancelled:
            await asyncio.sleep(0.02)

    await asyncio.wait_for(nothing_left(), 60)
    await load(worker)
    assert len((await detect(bare)).faces) == 1
