import asyncio
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shared.errors import InvalidModelError
from tests.support import tiny_text
from tests.support.text_pipeline import spec_of
from text_svc.formats import weights
from text_svc.formats.weights import weight_sizes
from text_svc.worker.engines import transformers as transformers_engine
from text_svc.worker.engines.metrics import EngineMetrics


def test_counts_floats_in_the_width_that_they_get(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}
    save_file(tensors | {"c": torch.zeros(2, dtype=torch.int64)}, tmp_path / "x.safetensors")
    assert weight_sizes(tmp_path, 4).total == (15 + 7) * 4 + 16
    assert weight_sizes(tmp_path, 2).total == (15 + 7) * 2 + 16


@pytest.mark.parametrize("shared", [False, True])
def test_the_sizes_are_those_of_the_loaded_model(tmp_path: Path, shared: bool) -> None:
    folder = tiny_text.save_llama(tmp_path / "model", tie_word_embeddings=shared)
    sizes = weight_sizes(folder, 4)
    spec = spec_of(folder, "text-generation", cache_bytes=1 << 20)
    engine, _, report = transformers_engine.load(spec, EngineMetrics("sizes"))
    asyncio.run(engine.close())
    assert bool(sizes.shared_head) is shared
    # Frequencies of positions are in no file.
    assert 0 <= report.weights_bytes - sizes.total - sizes.shared_head < 1000


def _header(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a pickle in a zip",
        b"\xff" * 64,
        b"\x02\0\0\0",
        (1 << 40).to_bytes(8, "little") + b"{}",
        (64).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"nope",
        (4).to_bytes(8, "little") + b'"\xff\xfe"',
        _header([]),
        _header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 15),
        _header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 17),
        _header({"a": {"dtype": "F32"}}),
        _header({"a": 1}),
        _header({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 0]}}),
        _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["x", "y"]}}),
        _header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"\0" * 4),
        _header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        _header({"a": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 4]}}, b"\0" * 4),
        _header(
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            },
            b"\0" * 12,
        ),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidModelError, match=r"model\.safetensors"):
        weight_sizes(tmp_path, 4)


def test_a_header_over_the_limit_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(weights, "MAX_HEADER_BYTES", 16)
    with pytest.raises(InvalidModelError, match="the limit is 16"):
        weight_sizes(tmp_path, 4)
