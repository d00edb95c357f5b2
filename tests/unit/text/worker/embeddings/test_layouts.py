"""Models as sentence-transformers lays them out, held against it on both engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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
from tests.support.strange_models import change_json
from tests.support.text_pipeline import serve, spec_of
from tests.support.tiny_parts import BERT_TOKENS, SMALL, bert_tokenizer, fast_tokenizer, save, widen
from text_svc.formats.recipe import model_folder, read_recipe

TEXTS = ["hello world", "a cat", "  music and history in PARIS  ", "a b c d e " * 40, "x"]
PROMPTS: dict[str, Any] = {"prompts": {"query": "a photo of the "}, "default_prompt_name": "query"}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def layout(folder: Path, modules: Mapping[str, str], own: Mapping[str, Any] | None = None) -> None:
    """Writes modules.json, of kinds by their folders, and the model's own configuration."""
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules.items())
    ]
    write(folder / "modules.json", listed)
    if own:
        write(folder / "config_sentence_transformers.json", own)


def pooling(folder: Path, **config: Any) -> None:
    modes = {} if "pooling_mode" in config else {"pooling_mode_mean_tokens": True}
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": 32, **modes, **config})


def sub_folder(folder: Path) -> None:
    tiny_models.build("bert", folder / "0_Transformer")
    limits = {"max_seq_length": 12, "do_lower_case": True}
    write(folder / "0_Transformer/sentence_roberta_config.json", limits)
    pooling(folder, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    layout(folder, {"0_Transformer": "Transformer", "1_Pooling": "Pooling"})


def layers(folder: Path) -> None:
    """A linear layer, a normalisation with weights, one of the length, and a linear layer."""
    tiny_models.build("bert", folder)
    pooling(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_N": "LayerNorm"}
    layout(folder, kinds | {"4_D": "Dropout", "5_N": "Normalize", "6_Dense": "Dense"})
    chance = torch.Generator().manual_seed(0)
    for name, size in (("2_Dense", (16, 32)), ("6_Dense", (8, 16))):
        activation = "torch.nn.modules.activation.Tanh" if size[0] == 16 else IDENTITY
        shape = {"in_features": size[1], "out_features": size[0], "bias": False}
        write(folder / name / "config.json", shape | {"activation_function": activation})
        weights = torch.randn(size, generator=chance)
        save_file({"linear.weight": weights}, folder / name / "model.safetensors")
    write(folder / "3_N/config.json", {"dimension": 16})
    norm = {f"norm.{name}": torch.randn(16, generator=chance) for name in ("weight", "bias")}
    save_file(norm, folder / "3_N/model.safetensors")
    write(folder / "4_D/config.json", {"dropout": 0.5})


IDENTITY = "torch.nn.modules.linear.Identity"


def layer_mean(folder: Path) -> None:
    tiny_models.build("bert", folder)
    change_json(folder / "config.json", output_hidden_states=True)
    config = {"word_embedding_dimension": 32, "layer_start": 1, "num_hidden_layers": 2}
    write(folder / "2_Mean/config.json", config)
    save_file({"layer_weights": torch.tensor([0.3, 2.0])}, folder / "2_Mean/model.safetensors")
    pooling(folder)
    layout(folder, {"": "Transformer", "2_Mean": "WeightedLayerPooling", "1_Pooling": "Pooling"})


def prompt_left_out(folder: Path) -> None:
    tiny_models.build("bert", folder)
    pooling(
        folder,
        include_prompt=False,
        pooling_mode_max_tokens=True,
        pooling_mode_weightedmean_tokens=True,
        pooling_mode_lasttoken=True,
    )
    layout(folder, {"": "Transformer", "1_Pooling": "Pooling"}, PROMPTS)


def static(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    (folder / "0_StaticEmbedding").mkdir(parents=True)
    tokenizer.backend_tokenizer.save(str(folder / "0_StaticEmbedding/tokenizer.json"))
    chance = torch.Generator().manual_seed(0)
    table = {"embedding.weight": torch.randn((len(tokenizer), 16), generator=chance)}
    save_file(table, folder / "0_StaticEmbedding/model.safetensors")
    layout(folder, {"0_StaticEmbedding": "StaticEmbedding", "1_N": "Normalize"}, PROMPTS)


def model2vec(folder: Path) -> None:
    static(folder)
    inner = folder / "0_StaticEmbedding"
    chance = torch.Generator().manual_seed(0)
    table = {"embeddings": torch.randn((len(bert_tokenizer()), 16), generator=chance)}
    save_file(table, folder / "model.safetensors")
    (inner / "tokenizer.json").rename(folder / "tokenizer.json")
    write(folder / "config.json", {"model_type": "model2vec", "architectures": ["StaticModel"]})
    layout(folder, {".": "StaticEmbedding"})


def last_token(folder: Path) -> None:
    """As Qwen3-Embedding: the last token of a decoder, padded on the left."""
    tokenizer = fast_tokenizer(BERT_TOKENS, around=("[CLS]", "[SEP]"))
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 64
    shape = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(tokenizer)}
    model = t.Qwen3Model(t.Qwen3Config(**shape, pad_token_id=0))
    widen(model)
    save(folder, model, tokenizer)
    pooling(folder, pooling_mode_mean_tokens=False, pooling_mode_lasttoken=True)
    layout(folder, {"": "Transformer", "1_Pooling": "Pooling", "2_N": "Normalize"})


def sliding_windows(folder: Path) -> None:
    """As EmbeddingGemma: tokens attend to both sides, in every second layer to near ones."""
    tokenizer = fast_tokenizer(BERT_TOKENS, around=("[CLS]", "[SEP]"))
    tokenizer.truncation_side = "left"
    tokenizer.model_max_length = 64
    shape = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(tokenizer)}
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
    config = t.Gemma3TextConfig(**shape, **kinds, pad_token_id=0, use_bidirectional_attention=True)
    model = t.Gemma3TextModel(config)
    widen(model)
    save(folder, model, tokenizer)
    pooling(folder)
    layout(folder, {"": "Transformer", "1_Pooling": "Pooling"})


def encoder_of_t5(folder: Path) -> None:
    tiny_models.build("t5", folder)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 600})
    pooling(folder)
    layout(folder, {"": "Transformer", "1_Pooling": "Pooling"})


def mpnet(folder: Path) -> None:
    """An architecture that computes attention in its own way."""
    tokenizer = bert_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    model = t.MPNetModel(t.MPNetConfig(**SMALL, vocab_size=len(tokenizer), pad_token_id=0))
    widen(model)
    save(folder, model, tokenizer)
    pooling(folder)
    layout(folder, {"": "Transformer", "1_Pooling": "Pooling"})


LAYOUTS: dict[str, Callable[[Path], None]] = {
    each.__name__: each
    for each in (sub_folder, layers, layer_mean, prompt_left_out, static, model2vec)
} | {each.__name__: each for each in (last_token, sliding_windows, encoder_of_t5, mpnet)}


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


def test_other_pipelines_find_the_model_in_its_folder(tmp_path: Path) -> None:
    assert model_folder(tmp_path) == tmp_path
    layout(tmp_path, {"0_CLIPModel": "CLIPModel"})
    assert model_folder(tmp_path) == tmp_path / "0_CLIPModel"
