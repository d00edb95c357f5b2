"""Tokenizers of strangers, tried before they are used."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidModelError
from tests.support.tiny_text import save_tokenizer
from text_svc.inspection import tokenizer
from text_svc.inspection.tokenizer import check_tokenizer


def replace(pattern: str, content: str, kind: str = "Regex") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def charsmap(replacements: bytes, trie: bytes = b"\0" * 1024) -> dict[str, Any]:
    table = len(trie).to_bytes(4, "little") + trie + replacements
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


def check(folder: Path, **changes: Any) -> None:
    save_tokenizer(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))
    check_tokenizer(folder, {"tokenizer.json": content})


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        sequence({"type": "NFKC"}, replace(" {2,}", "▁"), {"type": "Prepend", "prepend": "▁"}),
        replace("``", '"', "String"),
        {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
    ],
)
def test_ordinary_normalisers_pass(tmp_path: Path, normalizer: Any) -> None:
    check(tmp_path, normalizer=normalizer)


def test_a_model_without_one_passes(tmp_path: Path) -> None:
    check_tokenizer(tmp_path, {})


@pytest.mark.parametrize(
    ("normalizer", "why"),
    [
        (replace("(a|aa)+$", "b"), "retry-limit|takes too long"),
        (replace("(z+)+$", "b"), "retry-limit|takes too long"),
        (replace("a", "x" * 10**6, "String"), "1000000 characters of one; the limit is 256"),
        (sequence(*[replace(".", "xx")] * 20), "1048576 characters of one"),
        (sequence(*[{"type": "NFC"}] * 10**5), "has 100003 steps; the limit is 100"),
        (replace("a" * 20_000, "b"), "a pattern of 20000 characters; the limit is 10000"),
        (replace("(", "b"), "cannot be used: Onig"),
        ({"type": "Precompiled", "precompiled_charsmap": "@@"}, "broken"),
        ({"type": "Precompiled", "precompiled_charsmap": "//////8="}, "broken"),
        (charsmap(b"x" * 1000), "a character by 1000 bytes; the limit is 256"),
    ],
)
def test_hostile_normalisers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normalizer: Any, why: str
) -> None:
    monkeypatch.setattr(tokenizer, "TRIAL_SECONDS", 2)
    with pytest.raises(InvalidModelError, match=rf"tokenizer\.json .*({why})"):
        check(tmp_path, normalizer=normalizer)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"padding": {"strategy": {"Fixed": 10**9}}}, "pads to 1000000000 tokens"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}}}, "cannot be used"),
        ({"model": {"type": "WordPiece", "max_input_chars_per_word": 10**9}}, "takes words of"),
        ({"post_processor": {"type": "X", "ids": [1] * 100_000}}, "adds 100000 tokens"),
        ({"decoder": replace("a+", "b")}, "a regular expression in its decoder"),
        ({"model": None}, "cannot be used"),
    ],
)
def test_the_other_parts_are_limited_too(tmp_path: Path, changes: Any, why: str) -> None:
    with pytest.raises(InvalidModelError, match=why):
        check(tmp_path, **changes)


def test_too_much_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "TRIAL_BYTES", 1 << 20)
    monkeypatch.setattr(tokenizer, "TRIAL_CHARACTERS", 20_000_000)
    with pytest.raises(InvalidModelError, match="cannot be used"):
        check(tmp_path)
