"""A model on torch has what its files have, and nothing large besides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from shared.errors import InvalidModelError
from tests.support import tiny_models, tiny_text
from tests.support.strange_models import change_json
from text_svc.torch_models import shapes
from text_svc.torch_models.pretrained import load_model


def load(folder: Path, auto_class: Any = AutoModelForSequenceClassification) -> Any:
    return load_model(auto_class, folder, dtype=torch.float32)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return tiny_models.build("bert-nli", tmp_path / "bert")


def test_the_step_of_transformers_is_there_and_stays_as_it_was(bert: Path) -> None:
    before = vars(PreTrainedModel)["_finalize_model_loading"]
    load(bert)
    after = vars(PreTrainedModel)["_finalize_model_loading"]
    assert isinstance(before, staticmethod)
    assert after.__func__ is before.__func__


def test_a_wide_config_names_a_tensor_and_both_shapes(bert: Path) -> None:
    change_json(bert / "config.json", hidden_size=32_768)
    said = r"tensor .* has the shape \[.*32\] in the file and \[.*32768\] by config\.json"
    with pytest.raises(InvalidModelError, match=said):
        load(bert)


def test_as_many_layers_as_the_files_have(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_json(bert / "config.json", num_hidden_layers=100_000)
    monkeypatch.setattr(shapes, "MORE_PARTS", 100)
    with pytest.raises(InvalidModelError, match=r"a model of over .* and the files have"):
        load(bert)


def test_what_no_file_has_is_limited(bert: Path) -> None:
    """Without the matrix in the file there is no shape to compare with."""
    tensors = load_file(bert / "model.safetensors")
    kept = {name: one for name, one in tensors.items() if "word_embeddings" not in name}
    save_file(kept, bert / "model.safetensors", {"format": "pt"})
    change_json(bert / "config.json", vocab_size=1 << 24)
    with pytest.raises(InvalidModelError, match=r"word_embeddings.* of shape .* is in no file"):
        load(bert)


def test_tables_of_positions_are_limited(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=50, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["transformer.wpe.weight"]
    save_file(tensors, path, {"format": "pt"})
    change_json(tmp_path / "config.json", n_positions=1 << 24)
    with pytest.raises(InvalidModelError, match="bytes that no file has"):
        load(tmp_path, AutoModelForCausalLM)


def test_any_of_tied_tensors_may_be_in_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_text.save_llama(tmp_path / "tied", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    matrix = tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(shapes, "MAX_UNFILLED_BYTES", matrix.nbytes - 1)
    model = load(folder, AutoModelForCausalLM)
    assert torch.equal(model.model.embed_tokens.weight, matrix)


def test_the_quirks_of_published_models_load(bert: Path, tmp_path: Path) -> None:
    tensors = load_file(bert / "model.safetensors")
    # A model with another head, and with a tensor that nothing reads.
    save_file(tensors | {"extra.weight": torch.zeros(3)}, bert / "model.safetensors")
    load_model(AutoModel, bert, dtype=torch.float32, is_used=lambda name: "pooler" not in name)
    tied = tiny_text.save_llama(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    model = load(tied, AutoModelForCausalLM)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert json.loads((tied / "config.json").read_text())["tie_word_embeddings"]
