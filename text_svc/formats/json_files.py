"""JSON files of a model's folder. They come with the model, so they are checked when read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared.errors import InvalidModelError

TOKENIZER_CONFIG = "tokenizer_config.json"
MAX_JSON_BYTES = 16 << 20


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is no such file.

    Raises:
        InvalidModelError: it is not valid JSON, or over MAX_JSON_BYTES.
    """
    try:
        return _load(path)
    except FileNotFoundError:
        return None


def read_json_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object; empty if there is no such file.

    Raises:
        InvalidModelError: as `read_json`, or it is not a JSON object.
    """
    try:
        content = _load(path)
    except FileNotFoundError:
        return {}
    if not isinstance(content, dict):
        raise InvalidModelError(f"{path.name} is not a JSON object")
    return content


def _load(path: Path) -> Any:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InvalidModelError(f"{path.name} has more than {MAX_JSON_BYTES} bytes")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise InvalidModelError(f"{path.name} is not valid JSON") from None
