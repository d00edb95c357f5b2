"""JSON files of a model's folder. They come with the model, so they are checked when read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.errors import InvalidModelError
from shared.files import disk

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
# Largest file that is parsed here. The inspection has checked the limits of the settings before.
MAX_JSON_BYTES = 64 << 20


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is no such file.

    Raises:
        InvalidModelError: it is not valid JSON, or over MAX_JSON_BYTES.
    """
    try:
        return disk.read_json(path, max_bytes=MAX_JSON_BYTES)
    except FileNotFoundError:
        return None


def read_json_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object; empty if there is no such file.

    Raises:
        InvalidModelError: as `read_json`, or it is not a JSON object.
    """
    content = read_json(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidModelError(f"{path.name} is not a JSON object")
    return content
