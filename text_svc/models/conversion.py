"""Conversions of models to OpenVINO, made once for the same files, options and versions."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from shared.errors import (
    InternalError,
    InvalidModelError,
    OutOfMemoryError,
    ResourceExhaustedError,
    ServiceError,
)
from shared.files.cache import CacheEntry
from shared.model_ids import ModelId, folder_name
from shared.pipelines import Pipeline
from shared.process import exit_text
from text_svc.convert.launch import (
    ConversionReport,
    ConversionSpec,
    Weights,
)
from text_svc.formats.manifest import (
    PART_PREFIX,
    Manifest,
)
from text_svc.options import LoadOptions
from text_svc.processes.spawn import (
    end_process,
    read_to_end,
    worker_environment,
)
from text_svc.settings import TextSettings

log = logging.getLogger(__name__)

# Raised when `text_svc.convert` makes something else of the same files.
FORMAT = 3
# Packages whose version changes the result.
PACKAGES = ("openvino", "openvino-genai", "optimum-intel", "nncf", "torch", "transformers")
_REPORTED: dict[str, type[ServiceError]] = {
    kind.reason: kind for kind in (InvalidModelError, OutOfMemoryError, ResourceExhaustedError)
}


@dataclass(frozen=True)
class Conversion:
    """One model's conversion: where its files are, and where the result is or will be."""

    model_id: ModelId
    pipeline: Pipeline
    source: Path
    target: Path
    weights: Weights

    def manifest(self) -> Manifest | None:
        """What the result says; None while there is none."""
        return Manifest.read(self.target)


def plan(
    settings: TextSettings,
    model_id: ModelId,
    pipeline: Pipeline,
    folder: Path,
    options: LoadOptions,
) -> Conversion:
    """The conversion that a model needs. Reads the records of its files, not the files."""
    weights: Weights = "int8" if options.dtype == "int8" else "float"
    facts = {
        "format": FORMAT,
        "files": _hashes(settings.cache_dir, model_id, folder),
        "versions": _versions(),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    root = settings.converted_dir or settings.cache_dir / ".converted"
    name = f"{pipeline.name}-{weights}-{key}"
    target = root.resolve() / folder_name(model_id) / name
    return Conversion(model_id, pipeline, folder.resolve(), target, weights)


async def convert(conversion: Conversion, settings: TextSettings) -> Manifest:
    """Runs a conversion in a process of its own and returns what it made.

    Cancelling the call ends the process; nothing is left half made.

    Raises:
        InvalidModelError, OutOfMemoryError: the model itself cannot be read.
        InternalError: the process ended in another way, or took too long.
    """
    read_fd, write_fd = os.pipe()
    try:
        launch = ConversionSpec(
            parent_pid=os.getpid(),
            report_fd=write_fd,
            model_id=conversion.model_id,
            pipeline=conversion.pipeline.name,
            source=conversion.source,
            target=conversion.target,
            weights=conversion.weights,
            log_level=settings.log_level,
            log_style=settings.log_style,
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "text_svc.convert", launch.model_dump_json()),
            pass_fds=(write_fd,),
            stdin=asyncio.subprocess.DEVNULL,
            env=worker_environment(settings.threads or os.cpu_count() or 1),
        )
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    try:
        return await _result(read_fd, process, conversion, settings.load_timeout_seconds)
    finally:
        await end_process(process)
        await asyncio.to_thread(_clean, conversion.target.parent, process.pid)


def _clean(folder: Path, pid: int) -> None:
    """Removes what a process that was killed has left."""
    for part in folder.glob(f"{PART_PREFIX}{pid}-*"):
        shutil.rmtree(part, ignore_errors=True)


async def _result(
    fd: int, process: asyncio.subprocess.Process, conversion: Conversion, timeout: float
) -> Manifest:
    name = conversion.model_id
    try:
        async with asyncio.timeout(timeout):
            text = await read_to_end(fd)
            ended = exit_text(await process.wait())
    except TimeoutError:
        raise InternalError(f"model {name} was not converted within {timeout:g} s") from None
    if not text:
        raise InternalError(f"the process that converts model {name} ended: {ended}")
    report = ConversionReport.model_validate_json(text)
    if report.error:
        raise _REPORTED.get(report.error_reason, InternalError)(report.error)
    manifest = await asyncio.to_thread(conversion.manifest)
    if manifest is None:
        raise InternalError(f"the conversion of model {name} is gone; load the model again")
    return manifest


def _hashes(root: Path, model_id: ModelId, folder: Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name = path.relative_to(folder).as_posix()
        cached = CacheEntry(root, model_id, PurePosixPath(name)).find()
        if cached:
            hashes[name] = cached.sha256
    return hashes


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}
