"""The file of desired models: what stands in it is desired, beside what callers ask for.

An example::

    [[models]]
    id = "org/name"
    type = "text-generation"
    aliases = ["chat"]
    pin = true
    dtype = "bfloat16"

`type` and `architecture` are as in LoadModel, and may be left out as there; every other key is an
option of LoadModel.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_mgmt_svc.life_options import LifeChange, split_life
from model_mgmt_svc.options import usual_options
from model_mgmt_svc.resolve import Asked
from shared.errors import InvalidArgumentError, OutOfRangeError
from shared.file_options import FILE, FileOptions
from shared.model_ids import ModelId, parse_model_id

MAX_BYTES = 1 << 20
MAX_MODELS = 1000

# TOML has integers below this.
_LARGE = 1 << 63
_HEADER = re.compile(r"^\s*\[\[\s*models\s*\]\]")
# Keys of a model that are no options.
_ID, _TYPE, _ARCHITECTURE = "id", "type", "architecture"
_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")


class ModelsFileError(Exception):
    """The file cannot be used; the message says in which line and why."""


@dataclass(frozen=True)
class FileModel:
    """A model of the file.

    Attributes:
        entry: its keys and values as text: two that are the same ask for the same.
        asked: what is said of its type.
        options: for the replicas.
        change: its options of life.
        line: where it begins.
    """

    model_id: ModelId
    entry: Mapping[str, str]
    asked: Asked
    options: Mapping[str, str]
    change: LifeChange
    line: int


def read_models_file(path: Path) -> bytes:
    """The content of the file.

    Raises:
        ModelsFileError: it cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelsFileError(f"it cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise ModelsFileError(f"it has more than {MAX_BYTES} bytes")
    return content


def parse_models_file(content: bytes) -> list[FileModel]:
    """The models of the file.

    Raises:
        ModelsFileError: a line is not valid.
    """
    try:
        text = content.decode()
        tables = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ModelsFileError(f"line {line}: it is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ModelsFileError(_syntax(str(error), text)) from None
    except RecursionError:
        raise ModelsFileError("it is nested too deeply") from None
    except ValueError:  # of Python itself, which limits the digits of a number
        raise ModelsFileError("a number has too many digits") from None
    lines = text.split("\n")
    if unknown := sorted(tables.keys() - {"models"}):
        place = _line_of(lines, unknown[0], 0, len(lines))
        raise ModelsFileError(f"line {place}: {unknown[0][:40]!r} is not known; it must be models")
    entries = tables.get("models", [])
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise ModelsFileError("models must be tables, each under a line [[models]]")
    if len(entries) > MAX_MODELS:
        raise ModelsFileError(f"it has {len(entries)} models; the limit is {MAX_MODELS}")
    models = []
    for entry, start in zip(entries, _starts(lines, len(entries)), strict=True):
        try:
            models.append(_model(entry, start))
        except InvalidArgumentError as error:
            raise line_error(error, lines, start) from None
    _check_names(models)
    return models


def line_error(error: InvalidArgumentError, lines: Sequence[str], start: int) -> ModelsFileError:
    """The error of the model that begins in the line `start`, counted from 1."""
    key = (error.field or "").removeprefix("options[").removesuffix("]")
    key = _TYPE if key == "pipeline_type" else key
    rest = enumerate(lines[start:], start)
    end = next((number for number, line in rest if _HEADER.match(line)), len(lines))
    return ModelsFileError(f"line {_line_of(lines, key, start - 1, end)}: {error.message}")


def _model(entry: Mapping[str, Any], line: int) -> FileModel:
    texts = {name: _text(name, value) for name, value in entry.items()}
    model_id = parse_model_id(texts.get(_ID, ""), _ID)
    options = usual_options(
        {name: value for name, value in texts.items() if name not in (_ID, _TYPE, _ARCHITECTURE)}
    )
    change, options = split_life(options)
    FileOptions.of(options)
    asked = Asked(texts.get(_TYPE, ""), texts.get(_ARCHITECTURE, ""), options.get(FILE, ""))
    change.check(model_id, "text")  # what holds for every service
    for said in asked.types():
        change.check(model_id, said.pipeline.service)
    return FileModel(model_id, texts, asked, options, change, line)


def _check_names(models: Sequence[FileModel]) -> None:
    """Refuses a name that means two models.

    Raises:
        ModelsFileError: which one, and where.
    """
    owners: dict[ModelId, FileModel] = {}
    for model in models:
        for name in (model.model_id, *model.change.values.get("aliases", ())):
            other = owners.setdefault(name, model)
            if other is not model:
                raise ModelsFileError(
                    f"line {model.line}: the name {name!r} is that of the model in line "
                    f"{other.line}, too"
                )


def _text(name: str, value: object) -> str:
    """A value as LoadModel has it in its options."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if isinstance(value, int) and abs(value) >= _LARGE:
        raise OutOfRangeError(f"{name[:40]} has too many digits", field=name)
    if isinstance(value, int | float):
        return f"{value:.15g}" if isinstance(value, float) else str(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    raise OutOfRangeError(
        f"{name[:40]} must be a text, a number, true, false or a list of texts", field=name
    )


def _syntax(message: str, text: str) -> str:
    """What the parser says, with the line before it."""
    if found := _AT_LINE.search(message):
        return f"line {found[1]}: {message[: found.start()]}"
    return f"line {len(text.splitlines()) or 1}: {message.removesuffix(' (at end of document)')}"


def _starts(lines: Sequence[str], count: int) -> list[int]:
    """The lines, counted from 1, where each model begins."""
    starts = [number for number, line in enumerate(lines, 1) if _HEADER.match(line)]
    return starts if len(starts) == count else [1] * count  # written as one array


def _line_of(lines: Sequence[str], key: str, start: int, end: int) -> int:
    """The line, counted from 1, of a key between two lines; else the first of them."""
    pattern = re.compile(rf"""^\s*\[*\s*["']?{re.escape(key)}["']?\s*[=\].]""")
    found = (number for number in range(start, end) if key and pattern.match(lines[number]))
    return next(found, start) + 1
