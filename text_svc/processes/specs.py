"""What the front tells its child processes when it starts them, and what they report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from text_svc.formats.cleaned import link_files, links_in
from text_svc.options import LoadOptions
from text_svc.processes.sandbox import SandboxMode

# The parts of a load in the model's process.
LoadPart = Literal["reading", "trial", "giving back"]
EngineName = Literal["openvino", "transformers", "litert"]


class Report(BaseModel):
    """What a child process reports, once.

    Attributes:
        error_reason: of the `ServiceError` that ended it; empty on success.
        error: its message.
    """

    error_reason: str = ""
    error: str = ""


class ChildSpec(BaseModel):
    """The command of a child process: its one argument, as JSON.

    Attributes:
        parent_pid: the child ends with this process; `spawn` fills it in.
        report_fd: where the child writes its one `Report`, as JSON; `spawn` fills it in.
        model_id: the model that it works on.
        scratch: a folder of its own, for temporary files; `spawn` makes it, and it goes with the
            process.
        sandbox: see `text_svc.processes.sandbox`.
        cuda: whether it computes on a CUDA device.
        memory_bytes: see `text_svc.processes.memory`; 0 is no limit.
    """

    model_config = ConfigDict(frozen=True)

    parent_pid: int = 0
    report_fd: int = -1
    model_id: str
    scratch: Path
    sandbox: SandboxMode = "auto"
    cuda: bool = False
    memory_bytes: int = 0
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]
    log_style: Literal["json", "text"]

    def prepare(self) -> None:
        """What the child does before it is restricted; it reads nothing of the model."""

    def reads(self) -> list[Path]:
        """The folders that it may read."""
        return []

    def writes(self) -> list[Path]:
        """The folders in which it may make, write and remove files."""
        return [self.scratch]

    def send(self, report: Report) -> None:
        """Writes the report and closes its pipe. Called in the child."""
        with os.fdopen(self.report_fd, "w") as pipe:
            pipe.write(report.model_dump_json())


class WorkerSpec(ChildSpec):
    """The model that a worker loads and serves, and its limits.

    Attributes:
        folder: the files of the model.
        converted: what `text_svc.convert` made of them, for the engine that needs it.
        cache_bytes: of the key-value cache of a model that generates.
        tokenize_seconds: for a text, see `worker.tokenizing`.
        trial_seconds: see `worker.trial`; 0 for none.
        give_back_seconds: of no calls, after which it gives memory back; 0 is never.
        caller_weights: see `TextSettings.caller_weights`.
        hang_seconds, max_step_seconds: when the front ends the process, see `heartbeat`.
    """

    folder: Path
    pipeline: str
    options: LoadOptions
    engine: EngineName = "transformers"
    converted: Path | None = None
    cache_bytes: int = 0
    threads: int
    caller_weights: dict[str, float]
    give_back_seconds: float
    hang_seconds: float
    max_step_seconds: float
    tokenize_seconds: float
    trial_seconds: float
    max_running: int
    max_waiting: int
    max_waiting_calls: int
    max_texts: int
    max_call_tokens: int
    max_waiting_texts: int
    max_image_pixels: int
    max_map_pixels: int
    max_audio_seconds: float
    max_whole_sound_seconds: float
    max_video_frames: int
    max_media: int
    max_prompt_bytes: int
    max_text_bytes: int
    max_message_bytes: int

    @property
    def socket(self) -> Path:
        """Where it listens; a short path, since the kernel takes 107 bytes."""
        return self.scratch / "link.sock"

    def prepare(self) -> None:
        link_files(self.folder, links_in(self.scratch), self.options.weights)

    def reads(self) -> list[Path]:
        return [folder for folder in (self.folder, self.converted) if folder]

    def weights_in(self) -> Path:
        """The folder whose files of weights it reads, or such a file; for LiteRT its one file."""
        if self.options.file and self.engine == "litert":
            return self.folder / self.options.file
        return self.converted or links_in(self.scratch)


class WorkerReport(Report):
    """What a worker reports once it serves, or why it cannot.

    Attributes:
        weights_bytes: of its parameters and buffers, or of the file that has them.
        vram_bytes: of an accelerator's memory that it holds.
        seconds: that the parts of its load took, by name.
    """

    weights_bytes: int = 0
    vram_bytes: int = 0
    seconds: dict[LoadPart, float] = {}
