"""Names the reason where a model cannot be loaded because its repository has code of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import InvalidModelError
from text_svc.formats.json_files import read_json_object

# What transformers says of a model type that it does not know.
_UNKNOWN = (
    "does not recognize this architecture",
    "Unrecognized model",
    "Unrecognized configuration",
)


@contextmanager
def code_named(folder: Path) -> Iterator[None]:
    """Explains a failure to load a model that transformers knows by the repository's code alone.

    Args:
        folder: of the model's own files, whose config.json names the code.

    Raises:
        InvalidModelError: such a failure, in a sentence.
        Exception: any other failure, as it was.
    """
    try:
        yield
    except (ValueError, KeyError) as error:
        config = read_json_object(folder / "config.json")
        if not config.get("auto_map") or not any(words in str(error) for words in _UNKNOWN):
            raise
        raise InvalidModelError(
            f"transformers has no {str(config.get('model_type'))[:80]} models: the repository has "
            "code of its own for them (auto_map in config.json), which is not run"
        ) from error
