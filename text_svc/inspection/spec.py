"""The start command of an inspection, and what it reports."""

from __future__ import annotations

from pathlib import Path

from text_svc.processes.specs import ChildSpec, Report

# Memory of an inspection: a tokenizer.json of 64 MiB takes 1 GB as Python's objects.
MEMORY_BYTES = 4 << 30


class InspectionSpec(ChildSpec):
    """What to inspect; the one argument of `python -m text_svc.inspection`, as JSON.

    Attributes:
        folder: the files of the model.
        float_bytes: of a number in memory.
        file: the one that the model is, for LiteRT; then the others are not looked at.
        max_model_json_bytes: of a configuration.
        max_vocabulary_bytes: of a file that lists tokens, merges or tensors.
    """

    memory_bytes: int = MEMORY_BYTES
    folder: Path
    float_bytes: int
    file: str = ""
    max_model_json_bytes: int
    max_vocabulary_bytes: int

    def reads(self) -> list[Path]:
        return [self.folder]


class InspectionReport(Report):
    """What the model's files say.

    Attributes:
        weight_bytes: of all weights, in memory.
        shared_head_bytes: see `WeightSizes.shared_head`.
    """

    weight_bytes: int = 0
    shared_head_bytes: int = 0
