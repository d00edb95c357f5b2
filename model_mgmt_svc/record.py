"""A record on the disk that this service alone keeps: one JSON file in a folder that it locks.

Nothing here trusts the disk: a folder may be missing, read-only, full or somebody else's, and what
lies in the record's place may be anything. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import stat
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
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._owned = False

    def take(self) -> bool:
        """Makes the folder and locks it for this process; false while another one has it.

        The lock ends with the process, however that ends. Where the file system has no locks, it
        goes without.

        Raises:
            OSError: there can be no such folder, or it cannot be opened.
        """
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # such as on NFS, where a folder cannot be locked
            log.warning(
                "the state folder cannot be locked: let no other process use it",
                extra={"folder": str(folder), "error": error.strerror},
            )
        for left in folder.glob(f"{self.path.stem}.*.tmp"):  # by a process that was killed
            with contextlib.suppress(OSError):
                left.unlink()
        self._owned = True
        return True

    def release(self) -> None:
        """Unlocks the folder."""
        if self._lock is not None:
            os.close(self._lock)
        self._lock, self._owned = None, False

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
        if not self.path.parent.is_dir():
            self.release()
        if not self._owned:
            if not self.take():
                raise OSError(0, "another model_mgmt_svc uses the state folder")
            if os.path.lexists(self.path):  # never read, since the folder appeared just now
                place = keep_aside(self.path)
                log.warning("a record that was not read is kept", extra={"kept_as": place.name})
        write_json(self.path, content, durable=True)


def keep_aside(path: Path) -> Path:
    """Renames a file that is no record, so that its content is not lost; returns its new place.

    Raises:
        OSError: it cannot be renamed.
    """
    names = itertools.chain([".broken"], (f".broken{number}" for number in itertools.count(2)))
    place = next(each for name in names if not os.path.lexists(each := path.with_suffix(name)))
    path.rename(place)
    return place
