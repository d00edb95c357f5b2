"""What the front tells a conversion at its start, and what that answers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

Weights = Literal["float", "int8"]


class ExportLaunch(BaseModel):
    """The command of a conversion: its one argument, as JSON."""

    model_config = ConfigDict(frozen=True)

    parent_pid: int
    # Where it writes its one `ExportReport`, as JSON.
    report_fd: int
    model_id: str
    pipeline: str
    source: Path
    target: Path
    weights: Weights
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]
    log_style: Literal["json", "text"]


class ExportReport(BaseModel):
    """Empty when the target folder is there; else why the model itself cannot be read."""

    error_reason: str = ""
    error: str = ""
