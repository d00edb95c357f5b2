"""Disk access for the model cache: errors, hashes, and small JSON records written atomically.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import InternalError, InvalidModelError, ResourceExhaustedError

# Largest record that is read; ours have some hundred bytes.
MAX_RECORD_BYTES = 1 << 20
# Values of a JSON file, which take up to 100 bytes each in memory, and how deep they may be nested.
MAX_JSON_VALUES = 500_000
MAX_JSON_DEPTH = 64

# Errors of a full disk, a full quota, and a file over the limit of its process.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turns disk errors into `ServiceError`s, without paths."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ResourceExhaustedError("the disk of the model cache is full") from error
        raise InternalError(f"the model cache cannot be used: {error.strerror}") from error


def digest(path: Path) -> Any:
    """The SHA-256 of a file so far, as an object that can be updated further."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def hash_file(path: Path) -> str:
    """The SHA-256 of a file in lower-case hex."""
    return str(digest(path).hexdigest())


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, *, max_bytes: int, max_values: int = MAX_JSON_VALUES) -> Any:
    """The content of a JSON file of a model, or of a record of the cache.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidModelError: it is not a file or not valid JSON, or has more than `max_bytes` or
            `max_values`, or is nested deeper than MAX_JSON_DEPTH.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
        raise InvalidModelError(f"{path.name} is not a file")
    with path.open("rb") as file:
        text = file.read(max_bytes + 1)
    if len(text) > max_bytes:
        raise InvalidModelError(f"{path.name} has more than {max_bytes} bytes")
    # Counted before anything is made of them; those in strings are counted too.
    values = sum(text.count(sign) for sign in (b",", b"[", b"{"))
    if values > max_values:
        raise InvalidModelError(f"{path.name} has about {values} values; the limit is {max_values}")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidModelError(f"{path.name} is not valid JSON") from None
    if _is_deeper(content, MAX_JSON_DEPTH):
        raise InvalidModelError(f"{path.name} is nested deeper than {MAX_JSON_DEPTH}")
    return content


def _is_deeper(content: Any, depth: int) -> bool:
    """Whether lists and objects are nested deeper than `depth`; level by level, not recursive."""
    level = [content]
    for _ in range(depth + 1):
        lists = [each for each in level if isinstance(each, list)]
        objects = [each.values() for each in level if isinstance(each, dict)]
        if not lists and not objects:
            return False
        level = [value for values in (*lists, *objects) for value in values]
    return True


def read_record(path: Path) -> dict[str, Any] | None:
    """A record of the cache; None if it is missing, damaged or cannot be read."""
    try:
        value = read_json(path, max_bytes=MAX_RECORD_BYTES)
    except (OSError, InvalidModelError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict[str, Any], *, durable: bool = False) -> None:
    """Writes a record atomically, also while another process writes the same one.

    Args:
        path: its file.
        value: its content.
        durable: whether it must survive a power failure once this returns.
    """
    temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("w") as file:
            json.dump(value, file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # such as a part of it on a full disk
        raise
    if durable:
        sync_folder(path.parent)
