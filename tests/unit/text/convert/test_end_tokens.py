"""Which tokens end an answer, whichever of a model's files names them, or none does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ml import transformers_pb2 as pb
from tests.support import tiny_text
from tests.support.strange_models import change_json
from tests.support.text_pipeline import serve, spec_of
from tests.unit.text.conftest import convert
from text_svc.formats.manifest import Manifest
from text_svc.processes.specs import WorkerSpec
from text_svc.torch_models.pretrained import end_tokens_of

TOKENIZER: dict[str, Any] = {
    "eos_token": "</s>",
    "eos_token_id": 7,
    "unk_token": "<unk>",
    "unk_token_id": 0,
}


@pytest.mark.parametrize(
    ("named", "tokenizer", "ends"),
    [
        (2, {}, [2]),
        ([2, 3], {}, [2, 3]),
        ([2, -1], {}, [2]),
        (None, {}, [7]),
        (-1, {}, [7]),
        ([], {}, [7]),
        (None, {"eos_token": None, "eos_token_id": None}, []),
        (None, {"eos_token_id": -1}, []),
        (None, {"eos_token_id": 0}, []),  # the unknown token: its vocabulary has no </s>
        (None, {"eos_token": "<unk>", "eos_token_id": 0}, [0]),
    ],
)
def test_the_files_that_name_end_tokens(
    named: Any, tokenizer: dict[str, Any], ends: list[int]
) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=named))
    assert end_tokens_of(model, SimpleNamespace(**(TOKENIZER | tokenizer))) == ends


def model(folder: Path, **changes: Any) -> Path:
    """A Llama whose tokenizer has no end token; `changes` are of both its configurations."""
    tiny_text.save_llama(folder)
    change_json(folder / "tokenizer_config.json", eos_token=None)
    for name in ("config.json", "generation_config.json"):
        change_json(folder / name, **changes)
    return folder


async def answer(spec: WorkerSpec) -> tuple[str, pb.TextResponse]:
    text = ""
    async with serve(spec) as stub:
        request = pb.TextRequest(prompt="the sea", max_length=12, temperature=0)
        async for response in stub.GenerateText(request):
            text += response.text
    return text, response


@pytest.mark.parametrize("nothing", [{"eos_token_id": None}, {"eos_token_id": -1}])
async def test_a_model_without_end_tokens_converts_and_answers_until_the_length(
    tmp_path: Path, nothing: dict[str, Any]
) -> None:
    folder = model(tmp_path / "model", pad_token_id=-1, **nothing)
    converted = convert(folder, tmp_path / "converted" / "text-generation-float-1")
    manifest = Manifest.read(converted)
    assert manifest
    assert manifest.refused == ""
    assert manifest.end_tokens == []
    answers = [
        await answer(spec_of(folder, "text-generation", cache_bytes=1 << 24, **engine))
        for engine in ({}, {"engine": "openvino", "converted": converted})
    ]
    for text, last in answers:
        assert text == answers[0][0]
        assert last.finish_reason == "length"
        assert last.tokens_generated == 12
