"""Loads whose caller has gone away, and what is checked before a load."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from shared.errors import (
    InvalidArgumentError,
    ModelNotLoadedError,
    UnknownOptionError,
    UnknownPipelineError,
    WorkerUnavailableError,
)
from shared.files.client import ModelFiles
from shared.model_host import ModelState, Restores
from shared.model_ids import ModelId
from shared.pipelines import TEXT_PIPELINES
from shared.rpc.admission import Admission
from tests.support.waiting import until
from text_svc.models.model import ManagedModel
from text_svc.models.registry import Registry
from text_svc.options import LoadOptions
from text_svc.settings import TextSettings

MODEL = ModelId("org/name")


class Process:
    """A model's process that has ended."""

    async def stop(self) -> None:
        return


@contextlib.asynccontextmanager
async def registry_of_endless_loads(
    folder: Path, abandoned_load_seconds: float
) -> AsyncIterator[tuple[Registry, list[ManagedModel]]]:
    """A registry, and the loads that it has begun."""
    loads: list[ManagedModel] = []

    async def load(model: ManagedModel) -> None:
        loads.append(model)
        await asyncio.Event().wait()

    settings = TextSettings(
        cache_dir=folder, abandoned_load_seconds=abandoned_load_seconds, fork_server=False
    )
    async with Registry(settings, ModelFiles("127.0.0.1:1", folder)) as registry:
        registry._loader.load = load
        yield registry, loads


async def call_and_leave(registry: Registry) -> None:
    async with contextlib.aclosing(registry.load(MODEL, "chat", {})) as reports:
        async for _ in reports:
            break


async def test_a_load_waits_for_a_caller_who_comes_back(tmp_path: Path) -> None:
    async with registry_of_endless_loads(tmp_path, 600) as (registry, loads):
        await call_and_leave(registry)
        await call_and_leave(registry)
        await asyncio.sleep(0.05)
        assert len(loads) == 1
        await registry.unload(MODEL)
        assert registry.models() == []


async def test_a_load_that_nobody_asks_for_again_is_cancelled(tmp_path: Path) -> None:
    async with registry_of_endless_loads(tmp_path, 0.05) as (registry, loads):
        await call_and_leave(registry)
        await until(lambda: not registry.models())
        await call_and_leave(registry)
        await until(lambda: len(loads) == 2)


async def test_the_options_in_force_are_named_whatever_says_them(tmp_path: Path) -> None:
    async with registry_of_endless_loads(tmp_path, 0) as (registry, _):
        default = registry.check("embeddings", {})
        assert default["engine"] == "openvino"
        assert default["dtype"] == "float32"
        assert "max_length" not in default
        named = {"engine": "openvino", "dtype": "float32", "device": "cpu"}
        assert registry.check("feature-extraction", named) == default
        assert registry.check("chat", {"max_length": "0512"})["max_length"] == "512"


@pytest.mark.parametrize(
    ("pipeline", "options", "error"),
    [
        ("time-travel", {}, UnknownPipelineError),
        ("chat", {"speed": "11"}, UnknownOptionError),
        ("chat", {"device": "cuda:" + "1" * 10_000}, UnknownOptionError),
        ("chat", {"engine": "transformers", "dtype": "int8"}, InvalidArgumentError),
        ("tokenizer", {"cache_size_mb": "1"}, InvalidArgumentError),
    ],
)
async def test_what_a_load_would_refuse_is_refused_by_a_check(
    tmp_path: Path, pipeline: str, options: dict[str, str], error: type[Exception]
) -> None:
    async with registry_of_endless_loads(tmp_path, 0) as (registry, loads):
        with pytest.raises(error):
            registry.check(pipeline, options)
        with pytest.raises(error):
            async for _ in registry.load(MODEL, pipeline, options):
                pass
        assert loads == []


async def test_every_call_to_a_model_that_has_died_is_told_that_it_comes_back(
    tmp_path: Path,
) -> None:
    async with registry_of_endless_loads(tmp_path, 0) as (registry, _):
        for pipeline in TEXT_PIPELINES:
            died = ManagedModel(MODEL, pipeline, options=LoadOptions(), loaded_at=7)
            died.state, died.reason = ModelState.FAILED, "its process ended"
            registry._models = {MODEL: died}
            for call in pipeline.calls:
                with pytest.raises(WorkerUnavailableError, match="about to be loaded again"):
                    async with registry.use(MODEL, call):
                        pass


async def test_a_replica_that_let_itself_in_asks_callers_to_come_again_until_it_is_told(
    tmp_path: Path,
) -> None:
    admission, restores = Admission(0), Restores()
    await admission.wait()
    files = ModelFiles("127.0.0.1:1", tmp_path)
    registry = Registry(TextSettings(cache_dir=tmp_path), files, restores, admission)
    with pytest.raises(WorkerUnavailableError, match="just started"):
        async with registry.use(MODEL, "ChatCompletion"):
            pass
    restores.replace([])
    with pytest.raises(ModelNotLoadedError, match="LoadModel first"):
        async with registry.use(MODEL, "ChatCompletion"):
            pass


async def test_only_an_idle_model_goes_if_asked_so(tmp_path: Path) -> None:
    async with registry_of_endless_loads(tmp_path, 600) as (registry, loads):
        await call_and_leave(registry)
        assert not await registry.unload(MODEL, if_idle=True)  # it is being loaded
        await until(lambda: bool(loads))
        model = loads[0]
        model.state, model.process = ModelState.READY, cast("Any", Process())
        call = registry.models()[0].pipeline.calls[0]
        async with registry.use(MODEL, call):
            assert not await registry.unload(MODEL, if_idle=True)
            async with registry.use(MODEL, call):  # it goes on taking calls
                pass
        assert await registry.unload(MODEL, if_idle=True)
        assert not registry.models()


async def test_no_call_comes_between_the_question_and_the_end(tmp_path: Path) -> None:
    async with registry_of_endless_loads(tmp_path, 600) as (registry, loads):
        await call_and_leave(registry)
        await until(lambda: bool(loads))
        model = loads[0]
        model.state, model.process = ModelState.READY, cast("Any", Process())
        call = model.pipeline.calls[0]
        unload = asyncio.create_task(registry.unload(MODEL, if_idle=True))
        await asyncio.sleep(0)
        with pytest.raises(ModelNotLoadedError):
            async with registry.use(MODEL, call):
                pass
        assert await unload
