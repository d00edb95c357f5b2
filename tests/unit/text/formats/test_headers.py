"""Headers of safetensors files that strangers wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidModelError
from tests.support.strange_models import safetensors
from text_svc.formats import weights
from text_svc.formats.weights import model_tensors, read_header


def tensor(begin: int, end: int, shape: Any = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape or [end - begin], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        (b'{"a":' + b"[" * 100_000, 0, "nested|JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 0, "nested|tensors"),
        (b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', 1, "JSON"),
        (b'{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}', 1, "shape"),
        (b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', 1, "JSON"),
        ({"a": tensor(0, 4, [1 << 32, 1 << 32])}, 4, "other bytes"),
        ({"a": tensor(0, 4, [1 << 63, 0])}, 4, "shape"),
        ({"a": tensor(0, 4, [True, 4])}, 4, "shape"),
        ({"a": tensor(0, 4, [-2, -2])}, 4, "shape"),
        ({"a": tensor(0, 4, [1] * 20)}, 4, "shape"),
        ({"a": tensor(0, 4), "b": tensor(2, 6)}, 6, "overlap"),
        ({"a": tensor(0, 4), "b": tensor(5, 6)}, 6, "gap"),
        ({"a": tensor(1, 4)}, 4, "gap"),
        ({"a": tensor(0, 4)}, 5, "5 for them"),
        ({"a": tensor(0, 4, [4], "F32")}, 4, "other bytes"),
        ({"a": {**tensor(0, 4), "more": 1}}, 4, "or more"),
        (
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":%b}'
            % json.dumps(tensor(1, 2)).encode(),
            2,
            "same name",
        ),
        (
            b'{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
            2,
            "or more",
        ),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, header: Any, data: int, why: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(header, b"\0" * data))
    with pytest.raises(InvalidModelError, match=rf"model\.safetensors is not .*({why})"):
        read_header(path)


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {"b": tensor(2, 6), "__metadata__": {"format": "pt"}, "a": tensor(0, 2)}
    path.write_bytes(safetensors(header, b"\0" * 6))
    assert [each.name for each in read_header(path)] == ["a", "b"]


def test_the_number_of_tensors_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MAX_TENSORS", 3)
    for name in ("one", "two"):
        header = {f"{name}{index}": tensor(index, index + 1) for index in range(2)}
        (tmp_path / f"{name}.safetensors").write_bytes(safetensors(header, b"\0" * 2))
    with pytest.raises(InvalidModelError, match="over 3 tensors"):
        model_tensors(tmp_path)


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ({"weight_map": {"a": "one.safetensors", "c": "two.safetensors"}}, "'c'"),
        ({"weight_map": {"a": "../one.safetensors"}}, "'a'"),
        ({"weight_map": {"a": 3}}, "'a'"),
        ({"weight_map": []}, "no weight_map"),
        ({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}, "in two files"),
    ],
)
def test_an_index_agrees_with_its_files(tmp_path: Path, index: Any, why: str) -> None:
    for name in ("one", "two"):
        header = {"a": tensor(0, 1), "b": tensor(1, 2)}
        (tmp_path / f"{name}.safetensors").write_bytes(safetensors(header, b"\0" * 2))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidModelError, match=why):
        model_tensors(tmp_path)
