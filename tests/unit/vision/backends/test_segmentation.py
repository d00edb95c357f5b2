"""Which models are accepted for masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vision_svc.backends import segmentation


class Interpreter:
    """LiteRT with a model of many classes, of which none is among our models."""

    def __init__(self, model_path: str, num_threads: int) -> None:
        pass

    def allocate_tensors(self) -> None:
        pass

    def get_input_details(self) -> list[dict[str, object]]:
        return [{"index": 0, "shape": np.array([1, 256, 256, 3])}]

    def get_output_details(self) -> list[dict[str, object]]:
        return [{"index": 1, "shape": np.array([1, 256, 256, 6])}]


def test_a_model_of_many_classes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of its classes would be taken for hair and everything else."""
    monkeypatch.setattr(segmentation, "Interpreter", Interpreter)
    with pytest.raises(ValueError, match="a model of 6 classes"):
        segmentation.Segmenter(Path("model"), "binary")
