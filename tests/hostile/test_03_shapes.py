"""A model takes no more memory than its files have, whatever its config.json says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.support import tiny_models, tiny_text
from tests.support.attack import Attacks
from tests.support.stack import Stack
from tests.support.strange_models import change_json, stranger

WIDE = {"hidden_size": 32_768, "intermediate_size": 131_072}


def _bert(folder: Path, **config: Any) -> None:
    tiny_models.build("bert-nli", folder)
    change_json(folder / "config.json", **config)


def _llama(folder: Path, **config: Any) -> None:
    tiny_text.save_llama(folder)
    change_json(folder / "config.json", **config)


def _token_of_its_own(folder: Path) -> None:
    _bert(folder)
    change_json(folder / "added_tokens.json", **{"<x>": 1 << 31})


# Name: what makes the model, its pipeline, and what the refusal says.
MODELS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "wide": (partial(_bert, **WIDE), "text-classification", "by config.json"),
    "converted": (partial(_llama, **WIDE), "text-generation", "by config.json"),
    "deep": (
        partial(_bert, num_hidden_layers=9_999),
        "text-classification",
        "config.json makes a model of over",
    ),
    "deeper": (
        partial(_bert, num_hidden_layers=10**6),
        "text-classification",
        "num_hidden_layers 1000000; the limit is 10000",
    ),
    "long": (
        partial(_llama, max_position_embeddings=10**10),
        "text-generation",
        "max_position_embeddings 10000000000; the limit is 16777216",
    ),
    "token": (partial(_llama, eos_token_id=1 << 31), "text-generation", "token id 2147483648"),
    "added": (_token_of_its_own, "text-classification", "token id 2147483648"),
    "large": (
        partial(_bert, padding="x" * (45 << 20)),
        "text-classification",
        "config.json has 47",
    ),
}


def test_a_config_that_asks_for_more_than_the_files_have(attack: Attacks, stack: Stack) -> None:
    """A model takes no more memory than its files have, whatever its config.json says."""
    with attack("3 wide configurations", stack) as seen, stranger(stack) as caller:
        for name, (make, pipeline, why) in MODELS.items():
            said = caller.refusal(caller.publish(name, make), pipeline)
            assert said is not None, name
            assert why in said, name
        seen.say(f"{len(MODELS)} configurations refused before memory was allocated")
    grown = seen.most_grown
    assert grown is not None
    assert grown.worst < 1200 << 20
