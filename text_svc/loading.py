"""What libraries raise on a model that they cannot load, as errors that a caller can read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import InvalidModelError, OutOfMemoryError, ServiceError

log = logging.getLogger(__name__)


@contextmanager
def loading_errors(model_id: str, folder: Path) -> Iterator[None]:
    """Turns whatever is raised inside into a `ServiceError`.

    Args:
        model_id: what the message calls the model.
        folder: its files; the message does not show where.

    Raises:
        OutOfMemoryError: on the host or on an accelerator.
        InvalidModelError: anything else, in a sentence without paths.
    """
    try:
        yield
    except ServiceError:
        raise
    except Exception as error:  # whatever transformers raises on files that it does not like
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise OutOfMemoryError(f"model {model_id} does not fit into memory") from None
        log.exception("the model cannot be loaded")
        raise InvalidModelError(_sentence(model_id, folder, error)) from None


def _sentence(model_id: str, folder: Path, error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0].replace(str(folder), model_id)
    for part in (folder.parent, Path.home()):
        text = text.replace(str(part), "")
    return f"model {model_id} cannot be loaded: {type(error).__name__}: {text[:300]}"
