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
from shared.process import die_with_parent
from shared.telemetry import logs
from text_svc.convert.converters import CONVERTERS
from text_svc.convert.launch import (
    ExportLaunch,
    ExportReport,
)
from text_svc.convert.refused import RefusedError
from text_svc.formats.load_errors import loading_errors
from text_svc.formats.manifest import (
    PART_PREFIX,
    Manifest,
)


def export(launch: ExportLaunch) -> None:
    """Makes `launch.target`, unless another process has made it meanwhile."""
    parent = launch.target.parent
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if Manifest.read(launch.target):
            return
        for left in parent.glob(f"{PART_PREFIX}*"):  # of a process that was killed
            shutil.rmtree(left)
        part = Path(tempfile.mkdtemp(prefix=f"{PART_PREFIX}{os.getpid()}-", dir=parent))
        try:
            _make(launch, part).write(part)
            part.rename(launch.target)
            _remove_older(launch.target)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _remove_older(target: Path) -> None:
    """Removes what was made of other files or by other versions for the same use."""
    kind = target.name.rpartition("-")[0]
    for other in target.parent.glob(f"{kind}-*"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)  # one in use stays mapped until its end


def _make(launch: ExportLaunch, part: Path) -> Manifest:
    # Without this package, OpenVINO and nncf have nothing to send their usage statistics with.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    warnings.simplefilter("ignore")  # what tracing says to the authors of the model's code
    module = import_module(f"text_svc.convert.{CONVERTERS[launch.pipeline]}")
    try:
        manifest: Manifest = module.convert(launch.source, part, launch.weights)
        return manifest
    except RefusedError as error:
        shutil.rmtree(part)
        part.mkdir()
        return Manifest(refused=str(error))


def main() -> None:
    """Entry point; the one argument is an `ExportLaunch` as JSON."""
    launch = ExportLaunch.model_validate_json(sys.argv[1])
    die_with_parent(launch.parent_pid)
    logs.configure(f"text_svc.convert {launch.model_id}", launch.log_level, launch.log_style)
    os.nice(5)  # models that serve go first
    report = ExportReport()
    try:
        with loading_errors(launch.model_id, launch.source):
            export(launch)
    except ServiceError as error:
        report = ExportReport(error_reason=error.reason, error=error.message)
    with os.fdopen(launch.report_fd, "w") as pipe:
        pipe.write(report.model_dump_json())
    sys.exit(bool(report.error))


if __name__ == "__main__":
    main()
