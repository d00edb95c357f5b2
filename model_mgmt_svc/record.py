"""A record on the disk that this service alone keeps: one JSON file.

Nothing here trusts the disk: a folder may be missing, read-only, full or somebody else's, and what
lies in the record's place may be anything. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.files.disk import write_json

log = logging.getLogger(__name__)

# Largest record that is read; a model takes some hundred bytes.
MAX_RECORD_BYTES = 4 << 20


class RecordError(Exception):
    """What lies in the record's place is no record; the message says why."""


class RecordFile:
    """A JSON file that is replaced as a whole, so that a crash leaves the old one or the new one.

    Args:
        path: the file; its folder is created if missing.
        check: raises OSError while this process may not write; called before each write.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._check = check
        self._owned = False
        self._written: tuple[int, int, int] | None = None

    def take(self) -> None:
        """Makes the folder, and removes what others have not finished writing there.

        So a process that was stopped while it wrote does not replace the record when it goes on.

        Raises:
            OSError: there can be no such folder.
        """
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{self.path.stem}.*.tmp"):
            with contextlib.suppress(OSError):
                left.unlink()
        self._owned = True

    def is_replaced(self) -> bool:
        """Whether another process has replaced the record since this one wrote it last."""
        return self._written is not None and self._state() != self._written

    def read(self) -> bytes | None:
        """The content of the record; None if there is none.

        Raises:
            RecordError: it is no file, or too large.
            OSError: it cannot be read.
        """
        try:
            # Without waiting, as a pipe in its place would have it.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RecordError("it is not a file")
            content = file.read(MAX_RECORD_BYTES + 1)
        if len(content) > MAX_RECORD_BYTES:
            raise RecordError(f"it has more than {MAX_RECORD_BYTES} bytes")
        return content

    def write(self, content: dict[str, Any]) -> None:
        """Replaces the record; it is on the disk when this returns.

        If the folder could not be used before, or is gone, it is made anew.

        Raises:
            OSError: it cannot be written; the old record is still there.
        """
        self._check()
        if not self.path.parent.is_dir():
            self._owned = False
        if not self._owned:
            self.take()
            if os.path.lexists(self.path):  # never read, since the folder appeared just now
                place = keep_aside(self.path)
                log.warning("a record that was not read is kept", extra={"kept_as": place.name})
        write_json(self.path, content, durable=True)
        self._written = self._state()

    def _state(self) -> tuple[int, int, int] | None:
        """What tells this record from another one in its place; None without one."""
        try:
            seen = self.path.lstat()
        except OSError:
            return None
        return seen.st_ino, seen.st_mtime_ns, seen.st_size


def keep_aside(path: Path) -> Path:
    """Renames a file that is no record, so that its content is not lost; returns its new place.

    Raises:
        OSError: it cannot be renamed.
    """
    names = itertools.chain([".broken"], (f".broken{number}" for number in itertools.count(2)))
    place = next(each for name in names if not os.path.lexists(each := path.with_suffix(name)))
    path.rename(place)
    return place
