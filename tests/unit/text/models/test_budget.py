"""Memory that models reserve on the host and on CUDA devices, which are made up here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.errors import OutOfMemoryError
from shared.model_host import HOST, format_needs, parse_needs
from shared.model_ids import ModelId
from shared.pipelines import TEXT_GENERATION
from text_svc.models import engine_choice
from text_svc.models.budget import MIB, MIN_CACHE_BYTES, MemoryBudget
from text_svc.models.loader import CUDA_PROCESS_BYTES, PROCESS_BYTES, Loader
from text_svc.models.model import ManagedModel
from text_svc.options import LoadOptions
from text_svc.settings import TextSettings

GIB = 1 << 30
CARDS = {"cuda:0": 10 * GIB, "cuda:1": 20 * GIB}


def model(name: str = "a", **options: Any) -> ManagedModel:
    return ManagedModel(ModelId(name), TEXT_GENERATION, options=LoadOptions(**options))


def budget_of(models: list[ManagedModel], **settings: Any) -> MemoryBudget:
    return MemoryBudget(TextSettings(memory_budget_mb=1000, **settings), lambda: models, CARDS)


def pools(budget: MemoryBudget) -> dict[str, tuple[int, int]]:
    return {each.device: (each.budget_bytes, each.reserved_bytes) for each in budget.pools()}


def test_each_device_has_a_budget_of_its_own() -> None:
    models = [model()]
    budget = budget_of(models)
    budget.reserve(models[0], {HOST: 7, "cuda:1": 9})
    assert pools(budget) == {
        HOST: (1000 * MIB, 7),
        "cuda:0": (9 * GIB, 0),
        "cuda:1": (18 * GIB, 9),
    }
    assert models[0].reserved_bytes == 7


def test_a_setting_limits_each_device() -> None:
    assert pools(budget_of([], cuda_memory_budget_mb=3))["cuda:1"] == (3 * MIB, 0)


def test_what_one_device_lacks_is_refused_whole_with_all_needs() -> None:
    models = [model("a"), model("b")]
    budget = budget_of(models, cuda_memory_budget_mb=100)
    budget.reserve(models[0], {HOST: 10 * MIB, "cuda:0": 70 * MIB})
    needs = {HOST: 20 * MIB, "cuda:0": 40 * MIB}
    with pytest.raises(OutOfMemoryError, match="about 40 MiB of cuda:0 to be loaded") as caught:
        budget.reserve(models[1], needs)
    assert "only 30 MiB of the 100 MiB budget are free" in caught.value.message
    assert "TEXT_CUDA_MEMORY_BUDGET_MB" in caught.value.message
    told = caught.value.metadata
    assert (told["device"], told["needed_bytes"]) == ("cuda:0", str(40 * MIB))
    assert parse_needs(told["needs"]) == needs
    assert models[1].reserved == {}
    budget.reserve(models[1], {HOST: 20 * MIB, "cuda:1": 40 * MIB})  # the other card is free


def test_a_model_does_not_stand_in_its_own_way() -> None:
    models = [model()]
    budget = budget_of(models)
    budget.reserve(models[0], {HOST: 900 * MIB})
    budget.reserve(models[0], {HOST: 1000 * MIB})
    assert pools(budget)[HOST] == (1000 * MIB, 1000 * MIB)


@pytest.mark.parametrize("text", ["", "host", "host=", "host=x", "=1", "host=1,", "host=-1"])
def test_needs_that_cannot_be_read_are_none(text: str) -> None:
    assert parse_needs(text) == {}


def test_needs_are_read_as_they_were_written() -> None:
    needs = {HOST: 5, "cuda:10": 7}
    assert parse_needs(format_needs(needs)) == needs


def loader(folder: Path, models: list[ManagedModel], **settings: Any) -> Loader:
    made = Loader(TextSettings(cache_dir=folder, **settings), None, lambda: models)  # type: ignore[arg-type]
    made.budget = budget_of(models, **settings)
    made.budget._budgets[HOST] = 4 * GIB
    return made


def test_a_model_on_a_card_reserves_there_and_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice, "has_cuda", lambda: True)
    models = [model("a", device="cuda:1", cache_size_mb=64), model("b", cache_size_mb=64)]
    made = loader(tmp_path, models)
    for each in models:
        assert made._reserve(each, GIB // 4) == 64 * MIB
    on_card = GIB // 4 + CUDA_PROCESS_BYTES + 64 * MIB
    assert models[0].reserved == {HOST: GIB // 4 + PROCESS_BYTES, "cuda:1": on_card}
    assert models[1].reserved == {HOST: GIB // 4 + PROCESS_BYTES, "cuda:0": on_card}


def test_a_cache_on_a_card_takes_half_of_what_is_free_there(tmp_path: Path) -> None:
    models = [model("a", device="cuda:0"), model("b", device="cuda")]
    made = loader(tmp_path, models)
    beside = CUDA_PROCESS_BYTES + GIB // 8
    first = made._reserve(models[0], GIB // 8)
    assert first == (9 * GIB - beside) // 2
    second = made._reserve(models[1], GIB // 8)
    assert second == max(MIN_CACHE_BYTES, (9 * GIB - beside - first - beside) // 2)


def test_a_card_that_is_not_there_is_left_to_the_models_process(tmp_path: Path) -> None:
    each = model(device="cuda:7")
    assert loader(tmp_path, [each])._reserve(each, MIB) == 0
    assert each.reserved == {HOST: MIB + PROCESS_BYTES}
