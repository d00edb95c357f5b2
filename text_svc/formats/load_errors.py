"""Maps exceptions of model libraries to `ServiceError`s that a caller can read."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import (
    InvalidModelError,
    OutOfMemoryError,
    ResourceExhaustedError,
    ServiceError,
)

# Texts of allocation failures that have no exception class of their own.
_MEMORY_WORDS = ("can't allocate memory", "bad_alloc", "Cannot allocate memory")

log = logging.getLogger(__name__)


@contextmanager
def loading_errors(model_id: str, folder: Path) -> Iterator[None]:
    """Turns any exception raised inside into a `ServiceError`.

    Args:
        model_id: for the message.
        folder: of its files; removed from the message.

    Raises:
        OutOfMemoryError: on the host or on an accelerator.
        ResourceExhaustedError: on the disk.
        InvalidModelError: anything else, in a sentence without paths.
    """
    try:
        yield
    except ServiceError:
        raise
    except Exception as error:  # transformers raises anything on files that it cannot read
        if out_of_memory(error):
            raise OutOfMemoryError(f"model {model_id} does not fit into memory") from None
        if out_of_space(error):
            raise ResourceExhaustedError(f"no disk space is left for model {model_id}") from None
        log.exception("the model cannot be loaded")
        raise InvalidModelError(_sentence(model_id, folder, error)) from None


def out_of_memory(error: Exception) -> bool:
    """Whether an error of Python, torch or OpenVINO is a failed allocation."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(words in str(error) for words in _MEMORY_WORDS)
    )


def out_of_space(error: Exception) -> bool:
    """Whether a file could not be written because the disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _sentence(model_id: str, folder: Path, error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0].replace(str(folder), model_id)
    for part in (folder.parent, Path.home()):
        text = text.replace(str(part), "")
    return f"model {model_id} cannot be loaded: {type(error).__name__}: {text[:300]}"
