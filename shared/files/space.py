"""Room on the disk for a cache: its size limit, what is in use, and what is removed to keep it.

What is removed together is a unit: the files of a model, or one converted model. A unit is in use
while somebody holds a `Use` of its model, in this process or in another one that shares the folder;
the least recently used units go first. A file that several models have counts once, and one that is
linked from the cache of model_mgmt_svc counts there. To remove a link never harms who has another.

Everything here blocks on the disk: call it in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath

from prometheus_client import Counter, Gauge

from shared.errors import ResourceExhaustedError
from shared.files.blobs import Blobs
from shared.files.disk import disk_errors, read_record
from shared.files.inventory import Inventory, Unit, files_in
from shared.files.quarantine import DEFAULT_LIMIT_MB, Quarantine
from shared.files.verified import VerifiedFiles
from shared.model_ids import ModelId, folder_name
from shared.settings import FileSettings, variable_name

log = logging.getLogger(__name__)

# Part of its disk that a cache may take if no limit is set: two fit, and a fifth is for others.
DISK_SHARE = 0.4
# After this time, what an interrupted fetch or conversion has left is not waited for any more.
LEFTOVER_SECONDS = 24 * 3600.0
# Folder of the records and parts of files, under the cache's folder.
STATE_FOLDER = ".fetch"

USED = Gauge("model_cache_bytes", "Bytes of model files and converted models on the disk.")
LIMIT = Gauge("model_cache_limit_bytes", "Bytes that the cache on the disk may have.")
FREE = Gauge("model_cache_disk_free_bytes", "Bytes free on the disk of the cache.")
SAVED = Gauge("model_cache_saved_bytes", "Bytes that the cache would have more without its links.")
QUARANTINED = Gauge("model_cache_quarantine_bytes", "Bytes of files that did not match their hash.")
EVICTED = Counter("model_cache_evicted_bytes", "Bytes removed from the cache to make room.")


class Use:
    """Keeps what a cache has of a model from being removed, until it is closed.

    It is a shared lock on the model's folder, so it ends with the process, however that ends.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = -1
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            with contextlib.suppress(FileNotFoundError):
                # It may have been removed between open and lock.
                if os.path.samestat(os.fstat(self._descriptor), folder.stat()):
                    break
            os.close(self._descriptor)
        os.utime(self._descriptor)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Ends the use; may be called again, and is when nobody has the object any more."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        with contextlib.suppress(OSError):
            os.utime(descriptor)
        with contextlib.suppress(OSError):
            # The last one to use a folder into which nothing was fetched removes it.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._folder.rmdir()
        os.close(descriptor)


class CacheSpace:
    """The room of a cache.

    Args:
        root: the cache's folder.
        limit_bytes: of all that is in it; 0 means `DISK_SHARE` of the disk.
        setting: the variable that sets the limit, for messages.
        converted: folder of the converted models, which count too; None if there is none.
        kept: models that are not removed although nobody holds a `Use` of them.
        quarantine_bytes: of the files kept that do not match their hash, which count too.
        store: cache of model_mgmt_svc, if files are linked from there.

    Attributes:
        blobs: what is in the cache, by its hash.
        store: what is in that of model_mgmt_svc; None if it is not on this machine.
        quarantine: the files that do not match.
        verified: the files that do, as far as this process has read them.
    """

    def __init__(
        self,
        root: Path,
        limit_bytes: int = 0,
        *,
        setting: str = "CACHE_LIMIT_MB",
        converted: Path | None = None,
        kept: Callable[[], Collection[ModelId]] = tuple,
        quarantine_bytes: int = DEFAULT_LIMIT_MB << 20,
        store: Path | None = None,
    ) -> None:
        self.blobs = Blobs(root)
        self.store = Blobs(store) if store else None
        self.quarantine = Quarantine(root, quarantine_bytes)
        self.verified = VerifiedFiles()
        self._root = root
        self._limit_bytes = limit_bytes
        self._setting = setting
        self._converted = converted
        self._kept = kept
        self._lock = threading.Lock()

    @classmethod
    def of(
        cls,
        settings: FileSettings,
        root: Path,
        *,
        converted: Path | None = None,
        kept: Callable[[], Collection[ModelId]] = tuple,
        store: Path | None = None,
    ) -> CacheSpace:
        """The room of a service's cache, with the limit of its settings."""
        return cls(
            root,
            settings.cache_limit_mb << 20,
            setting=variable_name(type(settings), "cache_limit_mb"),
            converted=converted,
            kept=kept,
            quarantine_bytes=settings.quarantine_mb << 20,
            store=store,
        )

    @property
    def limit_bytes(self) -> int:
        """Bytes that the cache may have."""
        return self._limit_bytes or int(self._disk().total * DISK_SHARE)

    def use(self, model_id: ModelId) -> Use:
        """Keeps what the cache has of a model, and what is fetched now, until it is closed."""
        with disk_errors():
            return Use(self._root / folder_name(model_id))

    def used_bytes(self, without: Path | None = None) -> int:
        """Bytes of all units, of the quarantine, and of files being fetched as they will be.

        Args:
            without: a part that counts only with what is on the disk.
        """
        return self._used_bytes(self._inventory(), without)

    def _used_bytes(self, inventory: Inventory, without: Path | None) -> int:
        parts, quarantined = self._part_bytes(without), self.quarantine.used_bytes()
        return inventory.used_bytes + parts + quarantined

    def make_room(self, needed: int, *, of: Path | None = None) -> None:
        """Removes units that are not in use until so many bytes fit.

        Args:
            needed: bytes that are not on the disk yet.
            of: the part that they are for.

        Raises:
            ResourceExhaustedError: they do not; the message has the numbers.
        """
        with self._lock, disk_errors():
            inventory = self._inventory()
            self._drop_blobs(inventory)
            limit, free = self.limit_bytes, self._disk().free
            used = self._used_bytes(inventory, of)
            if used + needed > limit or needed > free:
                # What did not match goes first: nobody needs it.
                removed = self.quarantine.limit(max(used + needed - limit, needed - free))
                used, free = used - removed, free + removed
            if used + needed > limit or needed > free:
                used -= self._evict(inventory, used + needed - limit, needed - free)
                free = self._disk().free
            self._tell(inventory, used, limit, free)
        if needed > free:
            raise ResourceExhaustedError(
                f"the disk of the model cache is full: {needed} bytes are needed, {free} are free, "
                "and to remove what no model uses is not enough",
                metadata={"needed": str(needed), "free": str(free)},
            )
        if used + needed > limit:
            raise ResourceExhaustedError(
                f"the model cache is full: {needed} bytes are needed, it has {used} of the {limit} "
                f"bytes that it may have ({self._setting}), and to remove what no model uses is "
                "not enough",
                metadata={"needed": str(needed), "free": str(max(0, limit - used))},
            )

    def tell(self) -> None:
        """Updates the metrics."""
        with self._lock, disk_errors():
            inventory = self._inventory()
            used = self._used_bytes(inventory, None)
            self._tell(inventory, used, self.limit_bytes, self._disk().free)

    def sweep(self) -> None:
        """Removes what interrupted conversions left, and fetches a day ago, and what is too much.

        A fetch can be gone on with, and a conversion cannot.
        """
        with contextlib.suppress(ResourceExhaustedError):
            self.make_room(0)
        with self._lock, disk_errors():
            self.quarantine.limit()
            oldest = time.time() - LEFTOVER_SECONDS
            for path in _entries(self._root / STATE_FOLDER):
                if path.suffix in (".part", ".tmp", ".link") and _left_at(path) < oldest:
                    _remove_leftover(path)
            for model in _entries(self._converted):
                for path in _entries(model):
                    if path.name.startswith(".part-"):
                        _remove_conversion(path)

    def _evict(self, inventory: Inventory, of_limit: int, of_disk: int) -> int:
        """Removes units, the least recently used first, until they gave so many bytes back.

        Removes none if that cannot be reached, and none that gives nothing back. Returns the bytes
        of the limit.
        """
        kept = {folder_name(model_id) for model_id in self._kept()}
        units = sorted(
            (each for each in inventory.units if each.model not in kept and self._is_free(each)),
            key=lambda each: each.used_at,
        )

        def enough(removed: list[Unit]) -> bool:
            gain = inventory.gain(removed)
            return gain.cache >= of_limit and gain.disk >= of_disk

        if not enough(units):
            return 0
        everything = inventory.gain(units)
        gone: list[Unit] = []
        for unit in units:
            if enough(gone):
                break
            if inventory.gain([each for each in units if each is not unit]) == everything:
                continue  # others have all its files, too
            before = inventory.gain(gone).cache
            if self._remove(unit):
                gone.append(unit)
                size = inventory.gain(gone).cache - before
                EVICTED.inc(size)
                log.info(
                    "removed from the model cache to make room",
                    extra={"folder": str(unit.folder), "bytes": size},
                )
        self._drop_blobs(self._inventory())
        return inventory.gain(gone).cache

    def _drop_blobs(self, inventory: Inventory) -> None:
        """Removes the names of contents that no model has any more."""
        for blob, inode in self.blobs.inodes():
            if inode not in inventory:
                with contextlib.suppress(OSError):
                    blob.unlink()

    def _is_free(self, unit: Unit) -> bool:
        with _lock_folder(self._root / unit.model) as free:
            return free

    def _remove(self, unit: Unit) -> bool:
        """Removes a unit unless it is in use."""
        with _lock_folder(self._root / unit.model) as free:
            if free:
                if unit.folder.parent == self._root:
                    for path in files_in(unit.folder):
                        inner = PurePosixPath(path.relative_to(self._root))
                        state_file(self._root, inner, ".json").unlink(missing_ok=True)
                shutil.rmtree(unit.folder, ignore_errors=True)
            return free

    def _inventory(self) -> Inventory:
        folders = [(model.name, model, _mtime(model)) for model in _folders(self._root)]
        for model in _folders(self._converted):
            used_at = _mtime(self._root / model.name)
            folders += [
                (model.name, folder, max(used_at, _mtime(folder))) for folder in _folders(model)
            ]
        return Inventory(
            folders,
            (inode for _, inode in self.blobs.inodes()),
            (inode for _, inode in self.store.inodes()) if self.store else (),
        )

    def _part_bytes(self, without: Path | None) -> int:
        """Bytes of the files that are being fetched, once they are whole."""
        size = 0
        for part in _entries(self._root / STATE_FOLDER):
            if part.suffix == ".part":
                whole = part != without
                record = (read_record(part.with_suffix(".part.json")) if whole else None) or {}
                with contextlib.suppress(FileNotFoundError):
                    size += max(part.stat().st_size, int(record.get("total_size", 0)))
        return size

    def _disk(self) -> shutil._ntuple_diskusage:
        place = self._root
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place)

    def _tell(self, inventory: Inventory, used: int, limit: int, free: int) -> None:
        USED.set(used)
        LIMIT.set(limit)
        FREE.set(free)
        SAVED.set(inventory.saved_bytes)
        QUARANTINED.set(self.quarantine.used_bytes())


def state_file(root: Path, inner: PurePosixPath, suffix: str) -> Path:
    """The record or part of a file of the cache; `inner` is its path under the root."""
    key = hashlib.sha256(str(inner).encode()).hexdigest()[:32]
    return root / STATE_FOLDER / f"{key}{suffix}"


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[bool]:
    """Whether nobody uses the folder of a model, and nobody can until the end of the block."""
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        except FileNotFoundError:
            yield True
            return
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _remove_leftover(part: Path) -> None:
    """Removes a part with its record, or a temporary file, unless a fetch holds it."""
    with contextlib.suppress(OSError), part.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()
        if part.suffix == ".part":
            part.with_suffix(".part.json").unlink(missing_ok=True)
        log.info("removed what an interrupted fetch had left", extra={"file": str(part)})


def _remove_conversion(part: Path) -> None:
    """Removes a conversion that was not finished, unless one runs in its folder."""
    with contextlib.suppress(OSError), (part.parent / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(part, ignore_errors=True)
        log.info("removed what an interrupted conversion had left", extra={"file": str(part)})


def _entries(folder: Path | None) -> list[Path]:
    """What is in a folder; nothing if it does not exist."""
    if folder is None:
        return []
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _folders(folder: Path | None) -> list[Path]:
    """The folders in a folder, without hidden ones and links."""
    return [
        path
        for path in _entries(folder)
        if not path.name.startswith(".") and path.is_dir() and not path.is_symlink()
    ]


def _left_at(path: Path) -> float:
    """Unix time of the last change of a leftover; of a link when it was made, not its content."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0.0
    return found.st_ctime if path.suffix == ".link" else found.st_mtime


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
