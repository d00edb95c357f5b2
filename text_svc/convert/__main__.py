"""Converts one model: `python -m text_svc.convert`, started by `text_svc.models.conversion`."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path

from shared.errors import ServiceError
from shared.pipelines import FEATURE_EXTRACTION
from text_svc.convert import CONVERTERS
from text_svc.convert.refused import RefusedError
from text_svc.convert.spec import ConversionSpec
from text_svc.formats.cleaned import cleaned_folder, links_in
from text_svc.formats.load_errors import loading_errors, without_folders
from text_svc.formats.manifest import PART_PREFIX, Manifest
from text_svc.formats.recipe import model_folder
from text_svc.processes.child import begin
from text_svc.processes.specs import Report


def convert(spec: ConversionSpec) -> None:
    """Makes `spec.target`, unless another process has made it in the meantime.

    The folder is filled under another name and then renamed: it exists only when it is complete.

    Raises:
        OSError, ValueError, ServiceError: the model itself is broken, or memory or space is short.
    """
    parent = spec.target.parent
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if Manifest.read(spec.target):
            return
        for leftover in parent.glob(f"{PART_PREFIX}*"):
            # Of a process that was killed; the one that started it may remove it at this moment.
            shutil.rmtree(leftover, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=f"{PART_PREFIX}{os.getpid()}-", dir=parent))
        try:
            _make(spec, part).write(part)
            _remove(spec.target)  # what is left of a damaged one
            part.rename(spec.target)
            _remove_older(spec.target)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # what stays makes the renaming fail
    else:
        path.unlink(missing_ok=True)


def _remove_older(target: Path) -> None:
    """Removes conversions of older files, or by other versions, for the same use."""
    kind = target.name.rpartition("-")[0]
    for other in target.parent.glob(f"{kind}-*"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)  # one in use stays mapped


def _make(spec: ConversionSpec, part: Path) -> Manifest:
    # Without this package, OpenVINO and nncf cannot send usage statistics.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    warnings.simplefilter("ignore")  # from tracing, to the authors of the model's code
    module = import_module(f"text_svc.convert.{CONVERTERS[spec.pipeline]}")
    try:
        with cleaned_folder(spec.source, spec.scratch, spec.weights_file) as source:
            if spec.pipeline != FEATURE_EXTRACTION.name:  # it reads the modules' files itself
                source = model_folder(source)
            manifest: Manifest = module.convert(source, part, spec.weights)
        return manifest
    except RefusedError as error:
        shutil.rmtree(part)
        part.mkdir()
        folders = (links_in(spec.scratch), spec.source)
        return Manifest(refused=without_folders(str(error), spec.model_id, folders))


def main() -> None:
    """Entry point; the one argument is a `ConversionSpec` as JSON."""
    spec = begin(ConversionSpec, "text_svc.convert")
    os.nice(5)  # models that serve have priority
    report = Report()
    try:
        with loading_errors(spec.model_id, spec.source, links_in(spec.scratch)):
            convert(spec)
    except ServiceError as error:
        report = Report(error_reason=error.reason, error=error.message)
    spec.send(report)
    sys.exit(bool(report.error))


if __name__ == "__main__":
    main()
