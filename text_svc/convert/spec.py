"""The start command of a conversion's process."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from text_svc.formats.cleaned import link_files, links_in
from text_svc.processes.specs import ChildSpec

Weights = Literal["float", "int8"]


class ConversionSpec(ChildSpec):
    """What to convert; the one argument of `python -m text_svc.convert`, as JSON.

    Attributes:
        pipeline: its canonical name, a key of `CONVERTERS`.
        source: a folder of config, tokenizer and safetensors.
        target: the folder to make.
        weights_file: of the source, where it is not the usual one.
        weights: "float" keeps the precision of the files.
    """

    pipeline: str
    source: Path
    target: Path
    weights: Weights
    weights_file: str = ""

    def prepare(self) -> None:
        link_files(self.source, links_in(self.scratch), self.weights_file)

    def reads(self) -> list[Path]:
        return [self.source]

    def writes(self) -> list[Path]:
        return [self.scratch, self.target.parent]
