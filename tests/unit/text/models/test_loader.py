"""What a load is said to need, before anything is read into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shared.errors import OutOfMemoryError
from shared.files.client import ModelFiles
from shared.model_ids import ModelId
from shared.pipelines import TEXT_GENERATION, Pipeline, find_pipeline
from text_svc.models import engine_choice
from text_svc.models.budget import MIB, MIN_CACHE_BYTES
from text_svc.models.loader import PROCESS_BYTES, Loader
from text_svc.models.model import ManagedModel
from text_svc.options import LoadOptions
from text_svc.settings import TextSettings

WEIGHTS = 8 * MIB
EMBEDDING = 4 * MIB


class Held(Loader):
    """A loader whose files are here already."""

    folder: Path

    async def _fetch(self, model: ManagedModel) -> Path:
        return self.folder


async def needed(
    folder: Path, pipeline: Pipeline = TEXT_GENERATION, *, tied: bool = True, **options: Any
) -> int:
    """Bytes that a load is refused for, with a budget of nothing."""
    rows = EMBEDDING // 4 // 64
    head = "lm_head.weight" if not tied else "model.layers.0.mlp.weight"
    shapes = {"model.embed_tokens.weight": (rows, 64), head: (rows // 2, 128)}
    save_file({name: torch.zeros(s) for name, s in shapes.items()}, folder / "model.safetensors")
    settings = TextSettings(memory_budget_mb=1, cache_dir=folder / "cache")
    loader = Held(settings, ModelFiles("127.0.0.1:1", folder / "cache"), list)
    loader.folder = folder
    load_options = LoadOptions(engine="transformers", **options)
    model = ManagedModel(ModelId("tiny"), pipeline, options=load_options)
    with pytest.raises(OutOfMemoryError) as caught:
        await loader.load(model)
    return int(caught.value.metadata["needed_bytes"])


@pytest.mark.parametrize(
    ("tied", "dtype", "head"),
    [(True, "auto", EMBEDDING), (False, "auto", 0), (True, "bfloat16", 0)],
)
async def test_a_head_that_is_packed_beside_its_embedding_counts(
    tmp_path: Path, tied: bool, dtype: str, head: int
) -> None:
    weights = WEIGHTS if dtype == "auto" else WEIGHTS // 2
    wanted = weights + head + PROCESS_BYTES + MIN_CACHE_BYTES
    assert await needed(tmp_path, tied=tied, dtype=dtype, device="cpu") == wanted


async def test_a_model_that_does_not_generate_needs_its_weights(tmp_path: Path) -> None:
    got = await needed(tmp_path, find_pipeline("reranking"), device="cpu")
    assert got == WEIGHTS + PROCESS_BYTES


async def test_on_cuda_weights_are_halves_and_the_cache_is_not_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice, "has_cuda", lambda: True)
    assert await needed(tmp_path) == WEIGHTS // 2 + PROCESS_BYTES
    assert await needed(tmp_path, dtype="float32") == WEIGHTS + PROCESS_BYTES
