"""Models as sentence-transformers lays them out, held against it on both engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from safetensors.torch import save_file

from shared.errors import InvalidModelError
from tests.support import tiny_models
from tests.support.embeddings import converted, embed, expected
from tests.support.sentence_layouts import (
    LAYOUTS,
    PROMPTS,
    last_token,
    layout,
    model2vec,
    pooling,
    write,
)
from tests.support.strange_models import change_json
from tests.support.text_pipeline import serve, spec_of
from tests.support.tiny_parts import bert_tokenizer
from text_svc.formats.recipe import model_folder, read_recipe

TEXTS = ["hello world", "a cat", "  music and history in PARIS  ", "a b c d e " * 40, "x"]


@pytest.mark.parametrize("engine", ["transformers", "openvino"])
@pytest.mark.parametrize("name", LAYOUTS)
async def test_vectors_are_those_of_sentence_transformers(
    tmp_path: Path, name: str, engine: str
) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "model"
    LAYOUTS[name](folder)
    texts = [*TEXTS, ""] if "static" in name or name == "model2vec" else TEXTS
    # One text at a time, whose vector no padding can change.
    reference = np.stack([expected(folder, [text])[0] for text in texts])
    fields = converted(folder) if engine == "openvino" else {}
    async with serve(spec_of(folder, "embeddings", **fields)) as stub:
        got = await embed(stub, texts)
    assert np.abs(got - reference).max() < 1e-4 * np.abs(reference).max()
    assert np.abs(got[0] - got[1]).max() > 1e-3 * np.abs(reference).max()


async def test_the_new_keys_of_poolings_and_dimensions(tmp_path: Path) -> None:
    folder = tiny_models.build("bert", tmp_path / "model")
    layout(folder, {"": "Transformer", "1_Pooling": "Pooling"})
    pooling(folder, pooling_mode_cls_token=True, pooling_mode_weightedmean_tokens=True)
    old = expected(folder, TEXTS)
    pooling(folder, pooling_mode=["weightedmean", "cls", "mean"])
    layout(folder, {"": "Transformer", "1_Pooling": "Pooling"}, {"truncate_dim": 40})
    async with serve(spec_of(folder, "embeddings")) as stub:
        got = await embed(stub, TEXTS)
    wanted = np.hstack([old[:, 64:], old[:, :8]])
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() < 1e-4


async def test_a_table_whose_tokens_share_rows_and_have_weights(tmp_path: Path) -> None:
    model2vec(tmp_path)
    tokens = len(bert_tokenizer())
    rows, weights = torch.arange(tokens) % 7, torch.linspace(0.5, 2, tokens)
    table = torch.randn((7, 16), generator=torch.Generator().manual_seed(0))
    parts = {"embeddings": table, "mapping": rows, "weights": weights}
    save_file(parts, tmp_path / "model.safetensors")
    async with serve(spec_of(tmp_path, "embeddings")) as stub:
        got = await embed(stub, ["hello world"])
    text = PROMPTS["prompts"]["query"] + "hello world"
    ids = torch.tensor(bert_tokenizer()(text, add_special_tokens=False)["input_ids"])
    wanted = (table[rows[ids]] * weights[ids, None]).mean(0)
    assert np.abs(got[0] - wanted.numpy()).max() < 1e-5


@pytest.mark.parametrize("engine", ["transformers", "openvino"])
async def test_a_decoder_without_causal_attention(tmp_path: Path, engine: str) -> None:
    """`is_causal: false` counts for a text without padding too."""
    last_token(tmp_path)
    change_json(tmp_path / "config.json", is_causal=False)
    fields = converted(tmp_path) if engine == "openvino" else {}
    model = t.AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    tokenizer = t.AutoTokenizer.from_pretrained(tmp_path)
    with torch.inference_mode():
        hidden = model(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state[0, -1]
    wanted = torch.nn.functional.normalize(hidden, dim=0).numpy()
    async with serve(spec_of(tmp_path, "embeddings", **fields)) as stub:
        got = await embed(stub, [TEXTS[0]])
    assert np.abs(got[0] - wanted).max() < 1e-5


MODULES: list[tuple[list[dict[str, str]], dict[str, Any], str]] = [
    ([{"type": "custom_st.Transformer", "path": ""}], {}, "code of the model's own"),
    ([{"type": "pylate.models.Dense.Dense", "path": "1"}], {}, "code of the model's own"),
    *(
        ([{"type": f"sentence_transformers.models.{kind}", "path": ""}], {}, words)
        for kind, words in (
            ("MLMTransformer", "lists MLMTransformer: it makes sparse vectors"),
            ("CLIPModel", "reads pictures too; load it with the pipeline type clip"),
            ("Router", "lists Router: it has a model for each kind of text"),
            ("WordEmbeddings", "lists WordEmbeddings; it must list Transformer, Pooling"),
        )
    ),
    ([], {"model_type": "SparseEncoder"}, "a sparse encoder"),
    ([], {"model_type": "CrossEncoder"}, "pipeline type reranking"),
    ([], {"default_prompt_name": "query"}, "names the prompt 'query' as its default"),
    ([], {"truncate_dim": 0}, "truncate_dim .* is not a number from 1 up"),
]


@pytest.mark.parametrize(("modules", "own", "words"), MODULES)
def test_layouts_that_are_refused(
    tmp_path: Path, modules: list[dict[str, str]], own: dict[str, Any], words: str
) -> None:
    if modules:
        write(tmp_path / "modules.json", modules)
    write(tmp_path / "config_sentence_transformers.json", own)
    with pytest.raises(InvalidModelError, match=words):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"max_seq_length": "512"}, "max_seq_length .* is not a number"),
        ({"transformer_task": "fill-mask"}, "for fill-mask; it must make token_embeddings"),
        ({"config_args": {"is_decoder": True}}, "config_args with is_decoder"),
        (
            {"modality_config": {"text": {"method": "get_text_features"}}},
            "must read text by forward",
        ),
    ],
)
def test_configurations_of_a_transformer_that_are_refused(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    write(tmp_path / "sentence_bert_config.json", config)
    with pytest.raises(InvalidModelError, match=words):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"activation_function": "os.system"}, "activation 'os.system'"),
        ({"module_input_name": "token_embeddings"}, "puts a Dense layer on"),
    ],
)
def test_linear_layers_that_are_refused(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    pooling(tmp_path)
    write(tmp_path / "2_Dense/config.json", config)
    layout(tmp_path, {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"})
    with pytest.raises(InvalidModelError, match=words):
        read_recipe(tmp_path)


def test_a_prompt_of_null_is_an_empty_one(tmp_path: Path) -> None:
    own = {"prompts": {"query": "find: ", "document": None}, "default_prompt_name": None}
    write(tmp_path / "config_sentence_transformers.json", own)
    write(tmp_path / "sentence_bert_config.json", {"modality_config": None})
    assert read_recipe(tmp_path).prompts == {"query": "find: ", "document": ""}
    write(tmp_path / "config_sentence_transformers.json", {"prompts": {"query": ["find: "]}})
    with pytest.raises(InvalidModelError, match=r"prompt 'query' of .* is not a text"):
        read_recipe(tmp_path)


def test_other_pipelines_find_the_model_in_its_folder(tmp_path: Path) -> None:
    assert model_folder(tmp_path) == tmp_path
    layout(tmp_path, {"0_CLIPModel": "CLIPModel"})
    assert model_folder(tmp_path) == tmp_path / "0_CLIPModel"
