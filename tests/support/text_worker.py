"""One model in a worker process, without the front: for tests of families and engines."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from shared.pipelines import find_pipeline
from text_svc.launch import Launch
from text_svc.options import parse_options
from text_svc.process import ModelProcess
from text_svc.settings import TextSettings

# A limit for a start that hangs; it measures nothing.
START_SECONDS = 240.0


@contextlib.asynccontextmanager
async def text_worker(
    folder: Path, pipeline: str, options: Mapping[str, str] | None = None, **fields: Any
) -> AsyncIterator[ModelProcess]:
    """A worker that serves the model of a folder.

    Args:
        folder: config, tokenizer and safetensors.
        pipeline: any accepted name.
        options: load options as on the wire.
        fields: of `Launch`, to set otherwise than the settings' defaults.
    """
    settings = TextSettings().model_dump(
        include=set(Launch.model_fields) & set(TextSettings.model_fields)
    )
    with tempfile.TemporaryDirectory(prefix="text-worker-") as sockets:

        def launch(report_fd: int) -> Launch:
            return Launch(
                **{
                    **settings,
                    "parent_pid": os.getpid(),
                    "report_fd": report_fd,
                    "socket": Path(sockets, "worker.sock"),
                    "model_id": folder.name,
                    "folder": folder,
                    "pipeline": find_pipeline(pipeline).name,
                    "options": parse_options(options or {}),
                    "threads": 2,
                    **fields,
                }
            )

        process = await ModelProcess.start(launch, START_SECONDS)
        try:
            yield process
        finally:
            await process.stop()
