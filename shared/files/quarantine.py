"""Files that do not match their hash, kept aside for whoever wants to know why.

".quarantine/<number>.file" is such a file and ".quarantine/<number>.json" says what it was meant to
be. Nothing reads them: no service serves or loads a file from there. The oldest make room for newer
ones, and all of them for what is fetched.

Everything here blocks on the disk: call it in a thread.
"""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path, PurePosixPath

from prometheus_client import Counter

from shared.files.disk import write_json
from shared.model_ids import ModelId

log = logging.getLogger(__name__)

QUARANTINE_FOLDER = ".quarantine"
# Most files that are kept, whatever their size.
MAX_FILES = 16
DEFAULT_LIMIT_MB = 1024

_FILE, _RECORD = ".file", ".json"

TAKEN = Counter("model_cache_quarantined", "Files that did not match their hash.")


class Quarantine:
    """The place for them in a cache.

    Args:
        root: the cache's folder.
        limit_bytes: of all files together; a larger one is removed instead. 0 keeps none.
    """

    def __init__(self, root: Path, limit_bytes: int = DEFAULT_LIMIT_MB << 20) -> None:
        self._folder = root / QUARANTINE_FOLDER
        self._limit_bytes = limit_bytes

    def take(
        self, file: Path, model_id: ModelId, file_path: PurePosixPath, *, expected: str, found: str
    ) -> None:
        """Moves a file here, or removes it where it may not be kept.

        Args:
            file: where it is.
            model_id: whose it was meant to be.
            file_path: which one it was meant to be.
            expected: what it should have, such as its hash.
            found: what it has.
        """
        size = file.stat().st_size
        facts = {
            "model": model_id,
            "file": str(file_path),
            "expected": expected,
            "found": found,
            "size": size,
        }
        kept = size <= self._limit_bytes
        if kept:
            self._folder.mkdir(parents=True, exist_ok=True)
            place = self._folder / f"{time.time_ns():020}{_FILE}"
            file.replace(place)
            with contextlib.suppress(OSError):
                place.chmod(0o400)
            with contextlib.suppress(OSError):  # the file counts, also on a full disk
                write_json(place.with_suffix(_RECORD), facts | {"time": int(time.time())})
            self.limit()
        else:
            file.unlink()
        TAKEN.inc()
        log.warning(
            "a model file does not match and is kept aside"
            if kept
            else "a model file does not match and is removed",
            extra=facts,
        )

    def used_bytes(self) -> int:
        """Bytes of the files that are kept."""
        return sum(_size(file) for file in self._files())

    def limit(self, spare: int = 0) -> int:
        """Removes the oldest files until the rest is within the limits.

        Args:
            spare: bytes to remove in any case, if there are as many.

        Returns:
            The bytes removed.
        """
        files = self._files()
        sizes = {file: _size(file) for file in files}
        total, count, removed = sum(sizes.values()), len(files), 0
        for file in files:
            if total <= self._limit_bytes and count <= MAX_FILES and removed >= spare:
                break
            with contextlib.suppress(OSError):
                file.with_suffix(_RECORD).unlink(missing_ok=True)
                file.unlink(missing_ok=True)
                removed += sizes[file]
            total, count = total - sizes[file], count - 1
        return removed

    def _files(self) -> list[Path]:
        """The files, the oldest first."""
        try:
            return sorted(each for each in self._folder.iterdir() if each.suffix == _FILE)
        except (FileNotFoundError, NotADirectoryError):
            return []


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except FileNotFoundError:
        return 0
