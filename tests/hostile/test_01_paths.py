"""No path in a model's JSON is opened: a model reads the files of its own folder alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

import text_svc
from tests.support.attack import Attacks
from tests.support.stack import Stack
from tests.support.strange_models import Stranger, change_json, no_weights, stranger

# Also one that a model's process may open: its own code.
TARGETS = {"foreign": "/etc/passwd", "readable": str(Path(text_svc.__file__))}
# Classes whose vocabulary is the lines of a file; the unit tests have all others.
LINES = {"foreign": ("ProphetNetTokenizer", "EsmTokenizer"), "readable": ("ProphetNetTokenizer",)}
OWN = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<cls>", "<pad>", "<eos>", "<unk>", "hello"]


def _tokenizer(folder: Path, kind: str, files: dict[str, Any], *, own: bool) -> None:
    no_weights(folder)
    change_json(folder / "config.json", model_type="bert", **files)
    change_json(folder / "tokenizer_config.json", tokenizer_class=kind, do_word_tokenize=False)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        change_json(folder / name, **files)
    if own:
        for name in ("vocab.txt", "prophetnet.tokenizer"):
            (folder / name).write_text("".join(f"{token}\n" for token in OWN))


def _words(caller: Stranger, model_id: str) -> str:
    """The first tokens of a tokenizer; empty where it has none, or is refused."""
    refusal = caller.refusal(model_id, "tokenizer")
    if refusal is not None:
        assert "/" not in refusal.replace(model_id, ""), "no path is told"
        return ""
    words = [caller.decoded(model_id, number) for number in range(12)]
    caller.unload(model_id)
    return " ".join(filter(None, words))


@pytest.mark.parametrize("kind_of_file", TARGETS)
def test_a_tokenizer_has_no_lines_of_other_files(
    attack: Attacks, stack: Stack, kind_of_file: str
) -> None:
    target = TARGETS[kind_of_file]
    lines = [line for line in Path(target).read_text().splitlines() if len(line) > 8]
    files = {"vocab_file": target, "vocab": target, "init_inputs": [target], "merges_file": target}
    with (
        attack(f"1 paths in JSON, {kind_of_file}", stack) as seen,
        stranger(stack) as caller,
    ):
        for kind in LINES[kind_of_file]:
            make = partial(_tokenizer, kind=kind, files=files, own=False)
            name = caller.publish(kind, make)
            words = _words(caller, name)
            assert not [line for line in lines if line in words or line.split()[0] in words.split()]
        seen.say(f"a tokenizer shows nothing of {Path(target).name}")


def test_a_model_with_paths_of_its_authors_machine_is_served(attack: Attacks, stack: Stack) -> None:
    """Published models have such paths in their files; they are left out, and nothing else."""
    files = {
        "vocab_file": "/home/author/vocab.txt",
        "special_tokens_map_file": "/home/author/.cache/huggingface/special_tokens_map.json",
        "name_or_path": "/home/author/checkpoints/9",
        "tokenizer_file": None,
    }
    with attack("1 paths of an author", stack) as seen, stranger(stack) as caller:
        name = caller.publish(
            "author", lambda folder: _tokenizer(folder, "BertTokenizer", files, own=True)
        )
        assert "hello" in _words(caller, name)
        seen.say("left out; the model's own files are used")
