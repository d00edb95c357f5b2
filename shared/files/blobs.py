"""Contents of a cache by their SHA-256, so that one which several models have is stored once.

".blobs/<sha256>" is a hard link to a whole file of the cache. Another model with the same content
gets a link to it, and so does another service on the same machine, from the cache of
model_mgmt_svc. Files are never written to once they are whole, and nobody may: their mode is
`WHOLE_FILE_MODE`. Where the file system has no hard links, every file is a copy.

Everything here blocks on the disk: call it in a thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

BLOBS_FOLDER = ".blobs"
# For nobody to write, also not for the user who runs the services.
WHOLE_FILE_MODE = 0o444

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

# A file whatever its name: device and number of its inode.
Inode = tuple[int, int]


class Blobs:
    """The contents in a cache.

    Args:
        root: the cache's folder, of this service or of another one that it reads from.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / BLOBS_FOLDER

    def link(self, sha256: str, place: Path, size: int | None = None) -> bool:
        """Links a content to `place`, which must not exist; whether it could.

        What is linked may be damaged: the caller compares its hash.

        Args:
            sha256: in lower-case hex; anything else is not found.
            place: the new name.
            size: in bytes; another one is not found. None is any.
        """
        if not _SHA256.match(sha256):
            return False
        blob = self._folder / sha256
        try:
            found = blob.lstat()
            if not stat.S_ISREG(found.st_mode) or size not in (None, found.st_size):
                return False
            os.link(blob, place, follow_symlinks=False)
        except (OSError, NotImplementedError):
            # No such content, another file system or user, too many links, no links at all.
            return False
        return os.path.samestat(found, place.lstat())

    def keep(self, file: Path, sha256: str) -> None:
        """Gives a whole file its name here, if it can have one and nothing has it."""
        with contextlib.suppress(OSError, NotImplementedError):
            self._folder.mkdir(exist_ok=True)
            # One of an older version may be writable. To set what is set would count as a change.
            if stat.S_IMODE(file.stat().st_mode) != WHOLE_FILE_MODE:
                file.chmod(WHOLE_FILE_MODE)
            os.link(file, self._folder / sha256, follow_symlinks=False)

    def forget(self, file: Path, sha256: str, *, shared: bool = False) -> None:
        """Takes a file's name from here before the file is removed.

        Args:
            file: in the cache.
            sha256: its name here.
            shared: also if other models have it, such as one that is damaged.
        """
        blob = self._folder / sha256
        with contextlib.suppress(OSError):
            found = blob.lstat()
            if os.path.samestat(found, file.lstat()) and (shared or found.st_nlink <= 2):
                blob.unlink()

    def inodes(self) -> Iterator[tuple[Path, Inode]]:
        """All contents."""
        try:
            device = self._folder.stat().st_dev
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    yield Path(entry.path), (device, entry.inode())
        except OSError:  # there are none, or they are not for this user
            return
