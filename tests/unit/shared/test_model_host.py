"""A load is followed state by state, however short each of them is."""

from __future__ import annotations

import asyncio

import pytest

from shared.errors import CallCancelledError, InvalidModelError
from shared.model_host import HostedModel, ModelState, follow_load
from shared.model_ids import ModelId
from shared.pipelines import TEXT_GENERATION


@pytest.fixture
def model() -> HostedModel:
    return HostedModel(ModelId("org/name"), TEXT_GENERATION)


async def test_no_state_is_missed_and_ready_comes_last(model: HostedModel) -> None:
    async def load() -> None:
        model.bytes_fetched = model.bytes_total = 7
        model.state = ModelState.CONVERTING
        model.state = ModelState.LOADING
        model.state = ModelState.READY

    reports = [each async for each in follow_load(model, asyncio.create_task(load()))]
    states = list(dict.fromkeys(report.state for report in reports))
    assert [state.name for state in states] == ["FETCHING", "CONVERTING", "LOADING", "READY"]
    assert reports[-1].bytes_fetched == reports[-1].bytes_total == 7


async def test_a_model_that_is_ready_is_one_report(model: HostedModel) -> None:
    model.state = ModelState.READY
    done = asyncio.create_task(asyncio.sleep(0))
    await done
    reports = [each async for each in follow_load(model, done)]
    assert [report.state for report in reports] == [ModelState.READY]


async def test_an_error_ends_the_reports(model: HostedModel) -> None:
    async def load() -> None:
        raise InvalidModelError("broken")

    with pytest.raises(InvalidModelError, match="broken"):
        [each async for each in follow_load(model, asyncio.create_task(load()))]


async def test_an_unload_ends_them_with_cancelled(model: HostedModel) -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    asyncio.get_running_loop().call_later(0.01, task.cancel)
    with pytest.raises(CallCancelledError, match="unloaded while it was loading"):
        [each async for each in follow_load(model, task)]
