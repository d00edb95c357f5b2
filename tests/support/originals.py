"""The ONNX files that models of `make models` are made of, run by OpenVINO as they came."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from tokenizers import Tokenizer

from tests.support.optional_models import require_asset

Array = np.ndarray[Any, np.dtype[Any]]


class Original:
    """An asset's ONNX file. Skips the test if the asset is missing.

    Attributes:
        folder: where it is, with the other files of its package.
    """

    def __init__(self, models: Path, name: str) -> None:
        require_asset(models, name)
        self.folder = require_asset(models, f"{name}.onnx")
        (path,) = self.folder.rglob("*.onnx")
        exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
        self._model = openvino.Core().compile_model(str(path), "CPU", exact)

    def run(self, **inputs: Array) -> Array:
        """The first output."""
        result: Array = self._model(inputs)[0]
        return result


class OriginalEncoder(Original):
    """One that takes the tokens of a text, or of a pair of texts."""

    def __init__(self, models: Path, name: str) -> None:
        super().__init__(models, name)
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.tokenizer.no_padding()

    def output(self, *text: str) -> Array:
        """Its output for one text or one pair, without the dimension of the batch."""
        encoding = self.tokenizer.encode(*text)

        def row(values: Sequence[int]) -> Array:
            return np.array([values], np.int64)

        result: Array = self.run(
            input_ids=row(encoding.ids),
            attention_mask=row(encoding.attention_mask),
            token_type_ids=row(encoding.type_ids),
        )[0]
        return result
