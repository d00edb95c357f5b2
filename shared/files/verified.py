"""Hashes of files that have been read once, while the files are as they were then.

To read a model's weights for their hash takes longer than to load some models, and loads are often
repeated. So a process remembers what it has hashed, until the file is another one, or was written
to, or only touched: every change of content or name changes the time of the inode's last change,
which no program can set. A process that starts knows nothing, so what a disk has lost while the
machine was down is found.

Everything here blocks on the disk: call it in a thread.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

# Files that are remembered; the oldest are forgotten.
MAX_FILES = 10_000
# A file that was written to so shortly before may be written to again without another time: by the
# kernel's clock, which goes on every 10 ms at least, or where a file system keeps whole seconds.
CLOCK_SECONDS = 0.1
COARSE_CLOCK_SECONDS = 2.0
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Facts:
    """What tells whether a file has changed."""

    device: int
    inode: int
    size: int
    written_ns: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> _Facts:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    @property
    def key(self) -> tuple[int, int]:
        return self.device, self.inode

    def is_older_than(self, now_ns: int) -> bool:
        """Whether a write from now on changes the time of the last one."""
        coarse = self.written_ns % _SECOND == 0
        seconds = COARSE_CLOCK_SECONDS if coarse else CLOCK_SECONDS
        return now_ns - self.written_ns > seconds * _SECOND


class VerifiedFiles:
    """Remembers the hashes of files; used by several threads."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[_Facts, str]] = {}

    def hash(self, path: Path) -> str:
        """The SHA-256 of a file in lower-case hex; it is read unless it is known.

        Raises:
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            before = _Facts.of(os.fstat(file.fileno()))
            facts, sha256 = self._known.get(before.key, (None, ""))
            if facts == before:
                return sha256
            now = time.time_ns()
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if before.is_older_than(now) and _Facts.of(os.fstat(file.fileno())) == before:
                self._keep(before, sha256)
        return sha256

    def renamed(self, path: Path) -> None:
        """Keeps what is known of a file that the caller has renamed, or linked, itself."""
        now = _Facts.of(path.stat())
        facts, sha256 = self._known.get(now.key, (None, ""))
        if facts and replace(facts, changed_ns=now.changed_ns) == now:
            self._keep(now, sha256)

    def _keep(self, facts: _Facts, sha256: str) -> None:
        self._known.pop(facts.key, None)
        self._known[facts.key] = facts, sha256
        if len(self._known) > MAX_FILES:
            self._known.pop(next(iter(self._known)), None)
