"""Maps exceptions of model libraries to `ServiceError`s that a caller can read."""

from __future__ import annotations

import errno
import logging
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shared.errors import (
    InvalidModelError,
    OutOfMemoryError,
    ResourceExhaustedError,
    ServiceError,
)

# Texts of failed allocations: in errors that have no class of their own, and in the last words of
# a process that one has ended.
MEMORY_WORDS = (
    *("can't allocate memory", "bad_alloc", "Cannot allocate memory"),
    *("MemoryError", "memory allocation of"),
)

log = logging.getLogger(__name__)


@contextmanager
def loading_errors(model_id: str, *folders: Path) -> Iterator[None]:
    """Turns any exception raised inside into a `ServiceError`.

    Args:
        model_id: for the message.
        folders: of its files; removed from the message.

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
            raise OutOfMemoryError(
                f"model {model_id} does not fit into memory{_process_limit()}"
            ) from None
        if out_of_space(error):
            raise ResourceExhaustedError(f"no disk space is left for model {model_id}") from None
        log.exception("the model cannot be loaded")
        raise InvalidModelError(_sentence(model_id, folders, error)) from None


def out_of_memory(error: Exception) -> bool:
    """Whether an error of Python, torch or OpenVINO is a failed allocation."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(words in str(error) for words in MEMORY_WORDS)
    )


def memory_error(error: BaseException) -> OutOfMemoryError | None:
    """The error of a call that failed because memory was short; None if it failed otherwise."""
    if isinstance(error, ServiceError) or not isinstance(error, Exception):
        return None
    if not out_of_memory(error):
        return None
    return OutOfMemoryError(f"the call takes more memory than there is{_process_limit()}")


def _process_limit() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return ""
    return (
        f": its process may take {limit >> 20} MiB, which is its share of the memory budget and a "
        "margin (TEXT_MEMORY_MARGIN_MB)"
    )


def out_of_space(error: Exception) -> bool:
    """Whether a file could not be written because the disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _sentence(model_id: str, folders: Sequence[Path], error: Exception) -> str:
    text = without_folders((str(error).strip().splitlines() or [""])[0], model_id, folders)
    return f"model {model_id} cannot be loaded: {type(error).__name__}: {text[:300]}"


def without_folders(text: str, model_id: str, folders: Sequence[Path]) -> str:
    """A message with the model's id in place of its folders, and without those above them."""
    for folder in folders:
        text = text.replace(str(folder), model_id)
    for part in (*(folder.parent for folder in folders), Path.home()):
        text = text.replace(str(part), "")
    return text
