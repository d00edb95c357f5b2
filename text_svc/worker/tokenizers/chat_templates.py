"""The chat template of a model, in whichever of its files it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from text_svc.formats.json_files import TOKENIZER_CONFIG, read_json_object

TEMPLATE = "chat_template.jinja"
# Other files with a key of this name, the first one first; the last two are of processors.
KEY = "chat_template"
FILES = (TOKENIZER_CONFIG, "chat_template.json", "processor_config.json")
# The template to use if a model has several.
DEFAULT = "default"


def chat_template(folder: Path) -> str | None:
    """The source of the template in a model's folder; None if it has none.

    Raises:
        InvalidModelError: a file that may have one is not a JSON object.
    """
    path = folder / TEMPLATE
    if path.exists():
        return path.read_text()
    found = (default_template(read_json_object(folder / name).get(KEY)) for name in FILES)
    return next(filter(None, found), None)


def default_template(value: Any) -> str | None:
    """The template to use of those in a file: one, a list with names, or a table by name."""
    if isinstance(value, list):
        value = {
            each["name"]: each.get("template")
            for each in value
            if isinstance(each, dict) and isinstance(each.get("name"), str)
        }
    if isinstance(value, dict):
        value = value.get(DEFAULT)
    return value if isinstance(value, str) else None
