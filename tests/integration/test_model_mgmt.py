"""model_mgmt_svc as a process, with a real file provider and real workers around it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ml import model_management_pb2 as pb
from shared.errors import OutOfMemoryError
from tests.support.model_mgmt import Failure, ModelMgmt, failure_of, model_mgmt
from tests.support.model_workers import ModelWorker
from tests.support.processes import free_port
from tests.support.providers import Provider
from tests.support.waiting import until

MODEL = "org/name"
CONFIG = b'{"architectures": ["LlamaForCausalLM"]}'
NAMES = ("ml.ModelManagementService", "ml.TransformersService", "ml.MediapipeService")
Code = grpc.StatusCode


@pytest.fixture
async def source() -> AsyncIterator[Provider]:
    async with Provider({f"{MODEL}/config.json": CONFIG}).running() as provider:
        yield provider


@pytest.fixture
async def worker() -> AsyncIterator[ModelWorker]:
    async with ModelWorker().running() as served:
        yield served


@pytest.fixture
async def service(
    source: Provider, worker: ModelWorker, tmp_path: Path
) -> AsyncIterator[ModelMgmt]:
    async with model_mgmt(tmp_path, provider=source.address, text=worker.address) as running:
        yield running


async def failed(call: Awaitable[object]) -> Failure:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return failure_of(caught.value)


async def test_the_life_of_a_model(service: ModelMgmt, worker: ModelWorker) -> None:
    loaded = await service.load(f"models/{MODEL}/model.safetensors", options={"dtype": "float32"})
    assert loaded.success
    assert (loaded.ram_allocated_mb, loaded.vram_allocated_mb) == (91, 0)  # rounded up
    assert loaded.message == "org/name is loaded as text-generation, using 91 MiB of memory"
    assert dict(worker.loads[0].options) == {"dtype": "float32"}
    again = await service.load(MODEL, kind="chat")
    assert (again.success, again.ram_allocated_mb) == (True, 91)
    assert "keeps the options" not in again.message
    other = await service.load(MODEL, options={"dtype": "int8"})
    assert other.success
    assert "It keeps the options of its first load (dtype=float32)" in other.message
    assert len(worker.loads) == 1
    (model,) = await service.models()
    assert (model.model_id, model.pipeline_type) == (MODEL, "text-generation")
    assert (model.ram_mb, model.vram_mb, model.loaded_at) == (91, 0, 1_700_000_000)
    assert (await service.unload(MODEL)).success
    assert await service.models() == []
    failure = await failed(service.unload(MODEL))
    assert (failure.code, failure.reason) == (Code.FAILED_PRECONDITION, "MODEL_NOT_LOADED")


async def test_the_type_is_told_by_hint_or_config(
    service: ModelMgmt, worker: ModelWorker, source: Provider
) -> None:
    await service.load("org/hinted", kind="", architecture="BertModel")
    # A hint is compared with what the files say.
    assert {request.file_path for request in source.requests} == {"config.json", "modules.json"}
    await service.load(MODEL, kind="")
    types = [request.pipeline_type for request in worker.loads]
    assert types == ["feature-extraction", "text-generation"]


async def test_a_hint_and_an_alias_as_the_application_sends_them(
    service: ModelMgmt, worker: ModelWorker, source: Provider
) -> None:
    source.files["org/sees/config.json"] = b'{"model_type": "qwen2_vl"}'
    sees = await service.load("org/sees", "text-generation")
    assert sees.pipeline_type == "visual-language"
    assert "model_type qwen2_vl in its config.json" in sees.message
    for alias, architecture in (("Embedding", "generic"), ("sentence_similarity", "")):
        embeds = await service.load("org/embeds", alias, architecture=architecture)
        assert embeds.pipeline_type == "feature-extraction"
    assert {model.model_id: model.pipeline_type for model in await service.models()} == {
        "org/embeds": "sentence_similarity",
        "org/sees": "visual-language",
    }
    assert {model.canonical_type for model in await service.models()} == {
        *("feature-extraction", "visual-language")
    }
    again = await service.load("org/sees", "text-generation")
    assert again.pipeline_type == "visual-language"
    assert len(worker.loads) == 2
    source.files["org/clip/config.json"] = b'{"architectures": ["CLIPModel"]}'
    refused = await failed(service.load("org/clip", "text-generation"))
    assert (refused.code, refused.reason) == (Code.FAILED_PRECONDITION, "PIPELINE_MISMATCH")
    assert "CLIPModel" in refused.message


async def test_a_revision_is_asked_for_and_an_old_provider_told_of(
    service: ModelMgmt, worker: ModelWorker, source: Provider
) -> None:
    loaded = await service.load(MODEL, options={"revision": "v2", "trust_remote_code": "false"})
    assert {request.revision for request in source.requests} == {"v2"}
    assert dict(worker.loads[0].options) == {"revision": "v2"}
    assert "does not say that it has sent revision v2" in loaded.message
    hostile = await failed(service.load("org/other", options={"revision": "../../x"}))
    assert (hostile.code, hostile.field) == (Code.INVALID_ARGUMENT, "options[revision]")
    hostile = await failed(service.load("org/other", options={"file": "../../x"}))
    assert (hostile.code, hostile.field) == (Code.INVALID_ARGUMENT, "options[file]")


async def test_files_that_changed_are_fetched_by_the_next_load_alone(
    service: ModelMgmt, source: Provider
) -> None:
    path = "tokenizer.json"

    async def kept() -> bytes:
        return b"".join(chunk.data for chunk in await service.file(MODEL, path))

    source.files[f"{MODEL}/{path}"] = b"old"
    await service.load(MODEL)
    assert await kept() == b"old"
    source.files[f"{MODEL}/{path}"] = b"new"
    await service.load(MODEL)  # it is loaded: its replicas go on with what they have
    assert await kept() == b"old"
    await service.unload(MODEL)
    await service.load(MODEL)
    assert await kept() == b"new"


async def test_what_a_load_is_refused_for(service: ModelMgmt, worker: ModelWorker) -> None:
    unknown = await failed(service.load(MODEL, kind="time-travel"))
    assert (unknown.code, unknown.field) == (Code.INVALID_ARGUMENT, "pipeline_type")
    assert "text-generation" in unknown.message
    missing = await failed(service.load("org/other", kind=""))
    assert (missing.code, missing.reason) == (Code.NOT_FOUND, "MODEL_NOT_FOUND")
    worker.failures = [OutOfMemoryError("it needs 9 GiB, 4 GiB are free")]
    too_large = await failed(service.load(MODEL))
    assert (too_large.code, too_large.reason) == (Code.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    assert too_large.message == "it needs 9 GiB, 4 GiB are free"
    await service.load(MODEL)
    other = await failed(service.load(MODEL, kind="feature-extraction"))
    assert (other.code, other.reason) == (Code.FAILED_PRECONDITION, "PIPELINE_MISMATCH")


async def test_malformed_ids(service: ModelMgmt, source: Provider) -> None:
    ids = ["", "..", "../../etc", "/etc/passwd", "a/../b", "a\\b", "a\0b", "a b", "-a", "a--b"]
    for model_id in [*ids, "x" * 5000]:
        for call in (
            service.load(model_id),
            service.load(model_id, kind=""),
            service.unload(model_id),
            service.file(model_id, "config.json"),
        ):
            failure = await failed(call)
            assert (failure.code, failure.field) == (Code.INVALID_ARGUMENT, "model_id")
            assert failure.reason == ("INVALID_MODEL_ID" if model_id else "MISSING_FIELD")
    assert not source.requests
    assert not service.cache.exists()


async def test_ten_callers_are_one_load_and_those_who_leave_do_not_end_it(
    service: ModelMgmt, worker: ModelWorker
) -> None:
    worker.go_on.clear()
    stays = asyncio.create_task(service.load(MODEL))
    await until(lambda: bool(worker.loads))
    others = [asyncio.create_task(service.load(MODEL)) for _ in range(9)]
    await asyncio.sleep(0.2)
    for call in others[:5]:
        call.cancel()
    await asyncio.wait(others[:5])
    worker.go_on.set()
    answers = await asyncio.gather(stays, *others[5:])
    assert all(answer.success for answer in answers)
    assert (len(worker.loads), worker.cancelled) == (1, 0)


async def test_a_caller_that_goes_away_alone_leaves_the_load(
    service: ModelMgmt, worker: ModelWorker
) -> None:
    worker.go_on.clear()
    call = asyncio.create_task(service.load(MODEL))
    await until(lambda: bool(worker.loads))
    call.cancel()
    await asyncio.wait((call,))
    worker.go_on.set()

    async def loaded() -> bool:
        return bool(await service.models())

    await until(loaded)
    assert (await service.load(MODEL)).success
    assert (len(worker.loads), worker.cancelled) == (1, 0)


async def test_an_unload_stops_a_load_and_says_so(service: ModelMgmt, worker: ModelWorker) -> None:
    worker.go_on.clear()
    call = asyncio.create_task(failed(service.load(MODEL)))
    await until(lambda: bool(worker.loads))
    assert (await service.unload(MODEL)).message.endswith("is unloaded, and its load is stopped")
    failure = await call
    assert (failure.code, failure.reason) == (Code.CANCELLED, "CANCELLED")
    assert failure.message == "model 'org/name' was unloaded while it was loading"
    await until(lambda: worker.cancelled == 1)
    assert await service.models() == []


async def test_a_worker_that_is_down_and_comes_back(source: Provider, tmp_path: Path) -> None:
    port = free_port()
    async with model_mgmt(tmp_path, provider=source.address, text=f"127.0.0.1:{port}") as service:
        failure = await failed(service.load(MODEL))
        assert (failure.code, failure.reason) == (Code.UNAVAILABLE, "WORKER_UNAVAILABLE")
        assert failure.retry_seconds > 0
        assert await service.models() == []
        async with ModelWorker().running(port) as worker:
            assert (await service.load(MODEL)).success
            worker.go_on.clear()
            load = asyncio.create_task(failed(service.load("org/second")))
            await until(lambda: len(worker.loads) == 2)
        assert (await load).code == Code.UNAVAILABLE
        assert await service.models() == []
        async with ModelWorker().running(port) as restarted:
            # What was loaded comes back by itself; what failed to load does not.
            await until(lambda: set(restarted.models) == {MODEL})
            assert [model.model_id for model in await service.models()] == [MODEL]


async def test_desired_models_outlive_the_service(
    source: Provider, worker: ModelWorker, tmp_path: Path
) -> None:
    async with model_mgmt(tmp_path, provider=source.address, text=worker.address) as service:
        await service.load(MODEL)
        service.process.kill()
    worker.models.clear()
    async with model_mgmt(tmp_path, provider=source.address, text=worker.address) as service:
        await until(lambda: set(worker.models) == {MODEL})
        await service.unload(MODEL)
    async with model_mgmt(tmp_path, provider=source.address, text=worker.address) as service:
        await asyncio.sleep(0.5)
        assert await service.models() == []


async def test_a_provider_that_is_down_is_told(worker: ModelWorker, tmp_path: Path) -> None:
    down = f"127.0.0.1:{free_port()}"
    async with model_mgmt(tmp_path, provider=down, text=worker.address) as service:
        for call in (service.load(MODEL, kind=""), service.file(MODEL, "config.json")):
            failure = await failed(call)
            assert (failure.code, failure.reason) == (Code.UNAVAILABLE, "PROVIDER_UNAVAILABLE")
            assert failure.retry_seconds > 0


async def test_health_of_all_services(service: ModelMgmt, worker: ModelWorker) -> None:
    stub = health_pb2_grpc.HealthStub(service.channel)

    async def serving(name: str) -> bool:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    own, text, vision = NAMES
    await until(lambda: serving(own))
    assert await serving("")
    assert not await serving(text)
    assert not await serving(vision)
    await worker.say(text, True)
    await until(lambda: serving(text))
    await worker.stop()

    async def gone() -> bool:
        return not await serving(text)

    await until(gone)
    assert await serving("")


async def test_reflection_describes_all_services(service: ModelMgmt) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)

    async def ask(**request: str) -> reflection_pb2.ServerReflectionResponse:
        stream = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(**request)])
        )
        return await stream.read()

    listed = await ask(list_services="")
    assert {each.name for each in listed.list_services_response.service} >= set(NAMES)
    for name in NAMES:
        answer = await ask(file_containing_symbol=name)
        assert answer.file_descriptor_response.file_descriptor_proto


async def test_a_signal_ends_it_in_order(service: ModelMgmt, worker: ModelWorker) -> None:
    worker.go_on.clear()
    load = asyncio.create_task(service.load(MODEL))
    await until(lambda: bool(worker.loads))
    service.process.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(service.process.wait, 20)
    assert code == 0
    with contextlib.suppress(grpc.aio.AioRpcError):
        await load
    await until(lambda: worker.cancelled == 1)


async def test_a_load_that_nobody_waits_for_is_watched(
    service: ModelMgmt, worker: ModelWorker
) -> None:
    worker.go_on.clear()
    watch = service.stub.WatchModels(pb.WatchModelsRequest())
    first = await watch.read()
    assert first.complete
    assert not first.models
    begun = await service.load(MODEL, "code", wait=False)
    assert begun.success
    told = f"{MODEL} is being loaded; WatchModels tells how that goes on. "
    assert begun.message.startswith(told)
    assert "code" in begun.message  # what was taken, and why
    assert (begun.status.model_id, begun.status.state) == (MODEL, pb.MODEL_STATE_FETCHING)
    (listed,) = (await service.stub.ListModels(pb.ListModelsRequest())).models
    assert (listed.model_id, listed.replicas, listed.replicas_ready) == (MODEL, 1, 0)
    worker.go_on.set()
    states = [pb.MODEL_STATE_FETCHING]
    async with asyncio.timeout(30):
        while states[-1] != pb.MODEL_STATE_READY:
            states += [each.state for each in (await watch.read()).models]
    waited = await service.load(MODEL)
    assert waited.status.state == pb.MODEL_STATE_READY
    again = await service.load(MODEL, wait=False)
    assert again.message.startswith(f"{MODEL} is loaded")
    assert waited.status.ram_bytes == 90 * (1 << 20) + 1
    assert await service.unload(MODEL)
    removed: list[str] = []
    async with asyncio.timeout(30):
        while not removed:
            removed += (await watch.read()).removed
    assert removed == [MODEL]
    watch.cancel()
    failure = await failed(service.stub.WatchModels(pb.WatchModelsRequest(after=-1)).read())
    assert (failure.code, failure.field) == (Code.INVALID_ARGUMENT, "after")


async def test_a_stop_ends_a_watch_of_models(service: ModelMgmt) -> None:
    watch = service.stub.WatchModels(pb.WatchModelsRequest())
    await watch.read()
    service.process.send_signal(signal.SIGTERM)
    failure = await failed(watch.read())
    assert (failure.code, failure.reason) == (Code.UNAVAILABLE, "SHUTTING_DOWN")


async def test_options_of_life_and_aliases(
    source: Provider, worker: ModelWorker, tmp_path: Path
) -> None:
    life = {"pin": "true", "keep_alive": "300", "aliases": "chat, org/alias"}
    async with model_mgmt(tmp_path, provider=source.address, text=worker.address) as service:
        await service.load(MODEL, options={"dtype": "float32", **life})
        assert [dict(load.options) for load in worker.loads] == [{"dtype": "float32"}]
        assert [list(each.aliases) for each in worker.lives] == [["chat", "org/alias"]]
        again = await service.load("chat", options={"priority": "5", "pin": "false"})
        assert len(worker.loads) == 1
        assert "chat is an alias of it. " in again.message
        assert "Changed: pin=false, priority=5" in again.message
        begun = await service.load("chat", options={"evict": "none"}, wait=False)
        assert begun.status.model_id == MODEL
        refused = await failed(service.load("org/other", options={"aliases": "chat"}))
        assert (refused.code, refused.reason) == (Code.FAILED_PRECONDITION, "FAILED_PRECONDITION")
        refused = await failed(service.load(MODEL, options={"keep_alive": "soon"}))
        assert (refused.code, refused.field) == (Code.INVALID_ARGUMENT, "options[keep_alive]")
        refused = await failed(
            service.load("a/face", "face-detection", options={"keep_alive": "60"})
        )
        assert refused.message == (
            "option keep_alive must be -1 for a model of vision_svc, which its task would miss"
        )
    worker.restart()
    async with model_mgmt(tmp_path, provider=source.address, text=worker.address) as service:
        await until(lambda: bool(worker.lives and worker.models))
        (model,) = (await service.stub.ListModels(pb.ListModelsRequest())).models
        assert (model.pinned, model.keep_alive_seconds, model.priority) == (False, 300, 5)
        assert (model.evict, list(model.aliases)) == ("none", ["chat", "org/alias"])
        assert list(model.sources) == ["api"]
        gone = await service.unload("org/alias")
        assert gone.message == "org/name, which org/alias is an alias of, is unloaded"
        assert not worker.models
