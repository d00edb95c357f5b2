"""The files of a model in which a chat template may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidModelError
from text_svc.worker.tokenizers.chat_templates import chat_template

NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]


def folder_of(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"chat_template.jinja": "plain"}, "plain"),
        ({"tokenizer_config.json": {"chat_template": "plain"}}, "plain"),
        ({"tokenizer_config.json": {"chat_template": NAMED}}, "plain"),
        ({"tokenizer_config.json": {"chat_template": NAMED[:1]}}, None),
        ({"chat_template.json": {"chat_template": "plain"}}, "plain"),
        ({"chat_template.json": {"chat_template": {"default": "plain", "rag": "r"}}}, "plain"),
        ({"processor_config.json": {"chat_template": "plain"}}, "plain"),
        (
            {"chat_template.jinja": "plain", "tokenizer_config.json": {"chat_template": "old"}},
            "plain",
        ),
        ({"tokenizer_config.json": {"chat_template": [{"name": 1}, "x", None]}}, None),
        ({"tokenizer_config.json": {"chat_template": {"default": 7}}}, None),
    ],
)
def test_a_template_is_found(tmp_path: Path, files: dict[str, Any], expected: str | None) -> None:
    assert chat_template(folder_of(tmp_path, files)) == expected


def test_a_broken_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match=r"chat_template\.json is not a JSON object"):
        chat_template(folder_of(tmp_path, {"chat_template.json": []}))
