"""Conversions of models to OpenVINO, made once per set of files, options and versions."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from shared.errors import InternalError
from shared.files.cache import CacheEntry
from shared.model_ids import ModelId, folder_name
from shared.pipelines import Pipeline
from text_svc.convert.spec import ConversionSpec, Weights
from text_svc.formats.manifest import (
    PART_PREFIX,
    Manifest,
)
from text_svc.options import LoadOptions
from text_svc.processes.spawn import spawn
from text_svc.processes.specs import Report
from text_svc.settings import TextSettings

log = logging.getLogger(__name__)

# Increased when `text_svc.convert` makes something else of the same files.
FORMAT = 5
# Packages whose version changes the result.
PACKAGES = (
    *("openvino", "openvino-genai", "openvino-tokenizers", "optimum-intel", "nncf", "torch"),
    "transformers",
)


@dataclass(frozen=True)
class Conversion:
    """One model's conversion: where its files are, and where the result is or will be."""

    model_id: ModelId
    pipeline: Pipeline
    source: Path
    target: Path
    weights: Weights
    weights_file: str = ""

    def manifest(self) -> Manifest | None:
        """The manifest of the result; None while there is none."""
        return Manifest.read(self.target)


def converted_dir(settings: TextSettings) -> Path:
    """Folder of the converted models, with a folder for each model."""
    return settings.converted_dir or settings.cache_dir / ".converted"


def plan(
    settings: TextSettings,
    model_id: ModelId,
    pipeline: Pipeline,
    folder: Path,
    options: LoadOptions,
) -> Conversion:
    """The conversion that a model needs. Reads the hashes in the cache's records, not the files."""
    weights: Weights = "int8" if options.dtype == "int8" else "float"
    facts = {
        "format": FORMAT,
        "files": _hashes(settings.cache_dir, model_id, folder),
        "versions": _versions(),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    name = f"{pipeline.name}-{weights}-{key}"
    target = converted_dir(settings).resolve() / folder_name(model_id) / name
    return Conversion(model_id, pipeline, folder.resolve(), target, weights, options.weights)


async def convert(
    conversion: Conversion, settings: TextSettings, scratch: Path, memory_bytes: int = 0
) -> Manifest:
    """Runs a conversion in a process of its own and returns what it made.

    Cancelling the call ends the process; nothing incomplete is left.

    Args:
        conversion: see `plan`.
        settings: of text_svc.
        scratch: a folder for temporary files, which its process makes and which goes with it.
        memory_bytes: what the process may take; 0 is no limit.

    Raises:
        InvalidModelError, OutOfMemoryError, ResourceExhaustedError: the model itself cannot be
            read, or memory or disk space is short.
        InternalError: the process ended in another way, or took too long.
    """
    # Its process writes in this folder, and may not make it.
    await asyncio.to_thread(conversion.target.parent.mkdir, parents=True, exist_ok=True)
    spec = ConversionSpec(
        model_id=conversion.model_id,
        scratch=scratch,
        sandbox=settings.sandbox,
        memory_bytes=memory_bytes,
        pipeline=conversion.pipeline.name,
        source=conversion.source,
        target=conversion.target,
        weights=conversion.weights,
        weights_file=conversion.weights_file,
        log_level=settings.log_level,
        log_style=settings.log_style,
    )
    child = await spawn("text_svc.convert", spec, threads=settings.threads or os.cpu_count() or 1)
    try:
        await child.report(
            Report, f"converting model {conversion.model_id}", settings.load_timeout_seconds
        )
    finally:
        await child.end()
        await asyncio.to_thread(_clean, conversion.target.parent, child.pid)
    manifest = await asyncio.to_thread(conversion.manifest)
    if manifest is None:
        raise InternalError(
            f"the conversion of model {conversion.model_id} is gone; load the model again"
        )
    return manifest


def _clean(folder: Path, pid: int) -> None:
    """Removes what a killed process has left."""
    for part in folder.glob(f"{PART_PREFIX}{pid}-*"):
        shutil.rmtree(part, ignore_errors=True)


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
