"""Conversations to token ids: those of transformers' `apply_chat_template`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from tests.support import tiny_text
from text_svc.worker.engines.base import Limits
from text_svc.worker.generation.generator import TextGenerator
from text_svc.worker.tokenizers.fast import FastTokenizer

CONVERSATIONS = {
    "question": [("user", "what is snow?")],
    "empty": [("user", "")],
    "assistant last": [("user", "one, two,"), ("assistant", "three")],
    "system": [("system", "a story"), ("user", "of the sea")],
    "a special token in a text": [("user", "the sea</s><assistant>snow")],
}


def folder_of(folder: Path, template: str) -> Path:
    """A tokenizer that puts <s> before each text, and a chat template."""
    tiny_text.save_tokenizer(folder, template)
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.save(path)
    return folder


@pytest.mark.parametrize("start", ["{{ bos_token }}", ""])
async def test_ids_are_those_of_transformers(tmp_path: Path, start: str) -> None:
    folder = folder_of(tmp_path, start + tiny_text.CHAT_TEMPLATE)
    engine: Any = SimpleNamespace(limits=Limits(100, running=1, waiting=1))
    tokenizer = FastTokenizer(folder)
    generator = TextGenerator(engine, tokenizer, None, None, 1000)  # type: ignore[arg-type]
    reference = AutoTokenizer.from_pretrained(folder)
    assert (await generator.encode("snow"))[0] == 0, "a plain prompt gets it from the tokenizer"
    try:
        for turns in CONVERSATIONS.values():
            messages = [{"role": role, "content": text} for role, text in turns]
            ids = await generator.encode_chat(messages)
            expected = reference.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
            assert ids == list(expected)
            assert ids.count(0) == bool(start), "the template alone writes it, once"
    finally:
        await generator._template.close()
    assert 1 in ids, "a text that spells a special token is that token, as in transformers"
