"""The disk under the model cache: its errors, hashes, and small records that are whole or absent.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import InternalError, ResourceExhaustedError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turns failures of the disk into errors for the caller, without paths."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise ResourceExhaustedError("the disk of the model cache is full") from error
        raise InternalError(f"the model cache cannot be used: {error.strerror}") from error


def digest(path: Path) -> Any:
    """The SHA-256 of a file so far, which can be continued."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def hash_file(path: Path) -> str:
    """The SHA-256 of a file in lower-case hex."""
    return str(digest(path).hexdigest())


def sync_folder(folder: Path) -> None:
    """Has the names in a folder written to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any] | None:
    """A record; one that is missing or damaged counts as none."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a record in one step, whoever else writes the same one."""
    temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)
