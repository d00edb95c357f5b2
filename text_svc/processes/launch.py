"""What the front tells a model's process at its start, and what that answers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from text_svc.options import LoadOptions

EngineName = Literal["openvino", "transformers"]


class WorkerSpec(BaseModel):
    """The command of a worker process: its one argument, as JSON."""

    model_config = ConfigDict(frozen=True)

    parent_pid: int
    # Where the worker writes its one `WorkerReport`, as JSON.
    report_fd: int
    socket: Path
    model_id: str
    folder: Path
    pipeline: str
    options: LoadOptions
    engine: EngineName = "transformers"
    # What `text_svc.convert` made of the folder, for the engine that needs it.
    converted: Path | None = None
    # Of the key-value cache of a model that generates.
    cache_bytes: int = 0
    threads: int
    max_running: int
    max_waiting: int
    max_texts: int
    max_call_tokens: int
    max_waiting_texts: int
    max_image_pixels: int
    max_audio_seconds: float
    max_media: int
    max_prompt_bytes: int
    max_message_bytes: int
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]
    log_style: Literal["json", "text"]


class WorkerReport(BaseModel):
    """What a worker says once it serves, or why it cannot."""

    ram_bytes: int = 0
    vram_bytes: int = 0
    # Set when the model cannot be loaded: the error's reason and its sentence.
    error_reason: str = ""
    error: str = ""
