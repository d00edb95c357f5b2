"""The start command of a conversion's process, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

Weights = Literal["float", "int8"]


class ConversionSpec(BaseModel):
    """What to convert; the one argument of `python -m text_svc.convert`, as JSON.

    Attributes:
        parent_pid: the process ends with this one.
        report_fd: a pipe, to which the process writes one `ConversionReport` as JSON.
        model_id: for messages and the log.
        pipeline: its canonical name, a key of `CONVERTERS`.
        source: a folder of config, tokenizer and safetensors.
        target: the folder to make.
        weights: "float" keeps the precision of the files.
    """

    model_config = ConfigDict(frozen=True)

    parent_pid: int
    report_fd: int
    model_id: str
    pipeline: str
    source: Path
    target: Path
    weights: Weights
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]
    log_style: Literal["json", "text"]


class ConversionReport(BaseModel):
    """Empty when the target folder exists; else why the model itself cannot be read."""

    error_reason: str = ""
    error: str = ""
