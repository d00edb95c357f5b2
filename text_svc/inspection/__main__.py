"""Inspects one model's files: `python -m text_svc.inspection`, started by `models.inspection`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from shared.errors import InvalidModelError, ServiceError
from shared.files import disk
from shared.files.limits import FileLimits
from text_svc.formats import litertlm, tflite
from text_svc.formats.cleaned import data_files
from text_svc.formats.json_files import TOKENIZER
from text_svc.formats.weights import weight_sizes
from text_svc.inspection.config_numbers import check_config_numbers
from text_svc.inspection.spec import MEMORY_BYTES, InspectionReport, InspectionSpec
from text_svc.inspection.token_ids import check_token_ids
from text_svc.inspection.tokenizer import check_tokenizer
from text_svc.processes.child import begin

# Values of a tokenizer.json: each merge has two tokens.
MAX_VOCABULARY_VALUES = 5_000_000


def inspect(spec: InspectionSpec) -> InspectionReport:
    """Checks all files of a model that are parsed, and adds up its weights.

    Raises:
        InvalidModelError: what is wrong with one of them.
    """
    limits = FileLimits(spec.max_model_json_bytes, spec.max_vocabulary_bytes)
    if spec.file:
        return inspect_file(spec, limits)
    # By the folder that they are in: that of the model, or of one of its modules.
    contents: dict[Path, dict[str, Any]] = {}
    for name, path in data_files(spec.folder).items():
        limit = limits.of(name)
        if limit is None:
            continue
        limits.check(name, path.stat().st_size)
        if path.suffix == ".json":
            is_vocabulary = limit == spec.max_vocabulary_bytes
            values = MAX_VOCABULARY_VALUES if is_vocabulary else disk.MAX_JSON_VALUES
            place = spec.folder / name
            content = disk.read_json(path, max_bytes=limit, max_values=values)
            contents.setdefault(place.parent, {})[place.name] = content
    for folder, files in contents.items():
        check_config_numbers(files)
        check_token_ids(files)
        check_tokenizer(folder, files)
    sizes = weight_sizes(spec.folder, spec.float_bytes)
    return InspectionReport(weight_bytes=sizes.total, shared_head_bytes=sizes.shared_head)


def inspect_file(spec: InspectionSpec, limits: FileLimits) -> InspectionReport:
    """Checks the one file that a model of LiteRT is; its bytes are the weights'.

    Raises:
        InvalidModelError: what is wrong with it.
    """
    path = data_files(spec.folder).get(spec.file)
    if path is None:
        raise InvalidModelError(f"model {spec.model_id} has no file {spec.file[:80]!r}")
    if path.suffix == litertlm.SUFFIX:
        unpacked = spec.scratch / litertlm.UNPACKED
        file = litertlm.read_litertlm(path)
        file.unpack(unpacked, limits.json_bytes, limits.vocabulary_bytes)
        if (unpacked / TOKENIZER).exists():
            content = disk.read_json(
                unpacked / TOKENIZER,
                max_bytes=limits.vocabulary_bytes,
                max_values=MAX_VOCABULARY_VALUES,
            )
            check_token_ids({TOKENIZER: content})
            check_tokenizer(unpacked, {TOKENIZER: content})
    else:
        tflite.check_tflite(path)
    return InspectionReport(weight_bytes=path.stat().st_size)


def main() -> None:
    """Entry point; the one argument is an `InspectionSpec` as JSON."""
    spec = begin(InspectionSpec, "text_svc.inspection")
    try:
        report = inspect(spec)
    except MemoryError:
        error: ServiceError = InvalidModelError(
            f"the files of model {spec.model_id} take over {MEMORY_BYTES >> 20} MiB to inspect"
        )
        report = InspectionReport(error_reason=error.reason, error=error.message)
    except ServiceError as error:
        report = InspectionReport(error_reason=error.reason, error=error.message)
    spec.send(report)
    sys.exit(bool(report.error))


if __name__ == "__main__":
    main()
