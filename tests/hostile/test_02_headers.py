"""Headers of weights that strangers wrote are refused, and keep nobody else waiting."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.attack import Attacks
from tests.support.stack import Stack
from tests.support.strange_models import change_json, safetensors, stranger

EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def _many(count: int) -> bytes:
    one = json.dumps(EMPTY).replace(" ", "")
    return ("{" + ",".join(f'"{number}":{one}' for number in range(count)) + "}").encode()


def _one(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} | changes}


# Name: the header, and what the refusal says.
HEADERS: dict[str, tuple[Any, str]] = {
    "1.5 million tensors": (partial(_many, 1_500_000), "the limit is 8388608"),
    "130,000 tensors": (partial(_many, 130_000), "100000 tensors"),
    "a thousand deep": (lambda: b'{"a":' * 1000 + b"1" + b"}" * 1000, "not a safetensors file"),
    "a negative shape": (lambda: _one(shape=[-2, -2]), "the shape of tensor 'a'"),
    "NaN": (lambda: b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,4]}}', "not valid JSON"),
    "an overflowing shape": (lambda: _one(shape=[1 << 62, 8]), "other bytes"),
    "overlapping offsets": (
        lambda: _one() | {"b": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}},
        "overlap",
    ),
}


def _model(folder: Path, header: Any) -> None:
    change_json(folder / "config.json", model_type="bert")
    (folder / "model.safetensors").write_bytes(safetensors(header(), b"\0" * 4))


def _sharded(folder: Path) -> None:
    change_json(folder / "config.json", model_type="bert")
    (folder / "one.safetensors").write_bytes(safetensors(_one(), b"\0" * 4))
    files = {"a": "one.safetensors", "b": "one.safetensors"}
    change_json(folder / "model.safetensors.index.json", weight_map=files)


def test_hostile_headers_are_refused_and_others_served(attack: Attacks, stack: Stack) -> None:
    """Headers of weights that strangers wrote are refused, and keep nobody else waiting."""
    with attack("2 header of weights", stack) as seen, stranger(stack) as caller:
        for number, (name, (header, why)) in enumerate(HEADERS.items()):
            model_id = caller.publish(f"header{number}", partial(_model, header=header))
            said = caller.refusal(model_id, "text-classification")
            assert said is not None, name
            assert why in said, name
        said = caller.refusal(caller.publish("sharded", _sharded), "text-classification")
        assert said is not None
        assert "lists tensor 'b' in a file that does not have it" in said
        seen.say(f"{len(HEADERS) + 1} headers refused, one of 92 MB")
    grown = seen.most_grown
    assert grown is not None
    assert grown.worst - grown.before < 512 << 20
