"""The load option file: weights that are not in the usual file, for any pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from shared.pipelines import find_pipeline
from tests.support.text_pipeline import Tiny, scores, serve, spec_of
from text_svc.models.engine_choice import wanted_engine
from text_svc.options import parse_options


async def labels(folder: Path, **options: str) -> dict[str, float]:
    async with serve(spec_of(folder, "text-classification", options)) as stub:
        return scores(await stub.Infer(pb.InferRequest(text="hello a b")))


async def test_the_named_weights_are_the_models(tiny: Tiny, tmp_path: Path) -> None:
    usual = tiny("bert-nli")
    weights = load_file(usual / "model.safetensors")
    expected = await labels(usual)
    one = shutil.copytree(usual, tmp_path / "one")
    (one / "fp16").mkdir()
    (one / "model.safetensors").rename(one / "fp16" / "small.safetensors")
    assert await labels(one, file="fp16/small.safetensors") == pytest.approx(expected)
    sharded = shutil.copytree(usual, tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    (sharded / "parts").mkdir()
    names = sorted(weights)
    files = {name: f"{number % 2}.safetensors" for number, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: weights[name] for name in names if files[name] == file}
        save_file(part, sharded / "parts" / file, {"format": "pt"})
    index = sharded / "parts" / "all.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    seen = await labels(sharded, file="parts/all.safetensors.index.json")
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "x.tflite", "model.onnx", "config.json"])
@pytest.mark.parametrize("pipeline", ["text-classification", "text-generation", "clip"])
def test_a_file_that_no_engine_reads_is_refused(pipeline: str, file: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        wanted_engine(find_pipeline(pipeline), parse_options({"file": file}))
    assert caught.value.field == "options[file]"
    assert file in caught.value.message
