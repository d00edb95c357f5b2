"""What an inspection refuses before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidModelError
from tests.support.strange_models import change_json, no_weights
from text_svc.inspection.__main__ import inspect
from text_svc.inspection.spec import InspectionSpec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that is in order."""
    no_weights(tmp_path)
    change_json(tmp_path / "config.json", vocab_size=100, eos_token_id=[1, 99], pad_token_id=-1)
    return tmp_path


def inspected(folder: Path, **limits: int) -> int:
    spec = InspectionSpec(
        model_id="org/name",
        scratch=folder,
        folder=folder,
        float_bytes=4,
        max_model_json_bytes=limits.get("json", 4096),
        max_vocabulary_bytes=limits.get("vocabulary", 1 << 20),
        log_level="INFO",
        log_style="text",
    )
    return inspect(spec).weight_bytes


def test_a_model_in_order_passes(folder: Path) -> None:
    change_json(folder / "added_tokens.json", extra=100)
    change_json(folder / "vocab.json", en={"a": 0}, de={"b": 1})
    (folder / "merges.txt").write_text("x" * 100_000)
    assert inspected(folder) == 0


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("config.json", 4096),
        ("chat_template.jinja", 4096),
        ("1_Pooling/config.json", 4096),
        ("tokenizer.json", 1 << 20),
        ("merges.txt", 1 << 20),
        ("spiece.model", 1 << 20),
    ],
)
def test_files_that_are_parsed_have_a_limit(folder: Path, name: str, limit: int) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"a": "x" * limit}))
    with pytest.raises(InvalidModelError, match=rf"{name} has \d+ bytes; the limit is {limit}"):
        inspected(folder)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[" * 100_000, "not valid JSON"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested deeper than 64"),
        ("[" + "1," * 600_000 + "1]", "values; the limit is 500000"),
        ("{", "not valid JSON"),
        ("9" * 5000, "not valid JSON"),
    ],
)
def test_json_has_a_depth_and_a_number_of_values(folder: Path, content: str, why: str) -> None:
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(InvalidModelError, match=rf"generation_config\.json .*{why}"):
        inspected(folder, json=4 << 20)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"eos_token_id": 1 << 31}),
        ("config.json", {"text_config": {"image_token_id": 1 << 31}}),
        ("generation_config.json", {"suppress_tokens": [1, 1 << 31]}),
        ("generation_config.json", {"forced_decoder_ids": [[1, 1 << 31]]}),
        ("generation_config.json", {"lang_to_id": {"en": 1 << 31}}),
        ("added_tokens.json", {"<x>": 1 << 31}),
        ("vocab.json", {"a": 0, "b": 1 << 31}),
        ("vocab.json", {"en": {"a": 1 << 31}}),
        ("vocab.json", {"a": "b"}),
        ("tokenizer_config.json", {"added_tokens_decoder": {str(1 << 31): {"content": "a"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}),
        ("tokenizer.json", {"added_tokens": [{"id": 1 << 31, "content": "a"}]}),
        ("tokenizer.json", {"model": {"vocab": {"a": 1 << 31}}}),
    ],
)
def test_token_ids_are_in_the_vocabulary(folder: Path, name: str, content: Any) -> None:
    change_json(folder / name, **content)
    with pytest.raises(InvalidModelError, match=f"{name} has the token id"):
        inspected(folder)


@pytest.mark.parametrize(
    ("name", "content", "limit"),
    [
        ("config.json", {"num_hidden_layers": 10**6}, 10_000),
        ("config.json", {"text_config": {"n_layer": 10**6}}, 10_000),
        ("config.json", {"depths": [2, 10**9]}, 10_000),
        ("config.json", {"max_position_embeddings": 10**10}, 1 << 24),
        ("config.json", {"max_position_embeddings": float("nan")}, 1 << 24),
        ("config.json", {"num_labels": 10**9}, 1 << 20),
        ("config.json", {"vocab_size": 10**9}, 1 << 24),
        ("generation_config.json", {"num_return_sequences": 10**6}, 64),
        ("preprocessor_config.json", {"size": {"height": 10**6, "width": 2}}, 1 << 14),
    ],
)
def test_numbers_that_lists_are_made_of_are_limited(
    folder: Path, name: str, content: Any, limit: int
) -> None:
    change_json(folder / name, **content)
    with pytest.raises(InvalidModelError, match=rf"{name} has .*the limit is {limit}"):
        inspected(folder)


def test_labels_may_have_the_name_of_a_number(folder: Path) -> None:
    labels = {"layers": 20_000, "hidden_width": 20_001}
    change_json(folder / "config.json", label2id=labels, id2label={"20000": "layers"})
    inspected(folder)


def test_a_link_out_of_the_folder_is_refused(folder: Path) -> None:
    (folder / "vocab.txt").symlink_to("/etc/passwd")
    with pytest.raises(InvalidModelError, match="leads out"):
        inspected(folder)
