"""Model files on disk: whole files with a record of their hash, and parts being fetched.

Layout under the root: "org--name/<path>" are the files as published, so that a model's folder can
be loaded directly; ".fetch/<key>.json" records size, hash and time of a whole file;
".fetch/<key>.part" and ".fetch/<key>.part.json" are a file that is being fetched; ".blobs/<hash>"
are the whole files once more, see `shared.files.blobs`, and ".quarantine" has what did not match
its hash, see `shared.files.quarantine`.

Everything here blocks on the disk: call it in a thread. Processes that share a root exclude each
other by a lock on the part; a client must not share a root with its own provider.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path, PurePosixPath
from secrets import token_hex

from shared.errors import UnavailableError
from shared.files.blobs import WHOLE_FILE_MODE, Blobs
from shared.files.disk import (
    DISK_FULL,
    digest,
    disk_errors,
    read_record,
    sync_folder,
    write_json,
)
from shared.files.space import STATE_FOLDER, CacheSpace, state_file
from shared.files.verified import VerifiedFiles
from shared.model_ids import ModelId, folder_name, resolve_inside


@dataclass(frozen=True)
class CachedFile:
    """A whole file: its path, its size in bytes, its SHA-256 in lower-case hex.

    `revision` is the one that was asked for, if the provider has confirmed it; else "".
    """

    path: Path
    size: int
    sha256: str
    revision: str = ""

    def open_reader(self) -> FileIO:
        """Opens the file for reading.

        Raises:
            UnavailableError: it has been removed meanwhile.
        """
        with disk_errors():
            try:
                return FileIO(self.path)
            except FileNotFoundError:
                raise UnavailableError("the cached file was replaced; try again") from None


@dataclass(frozen=True)
class SourceVersion:
    """Which content the provider has: its size in bytes, and its SHA-256 or "" if not given.

    `revision` as in `CachedFile`.
    """

    total_size: int
    sha256: str = ""
    revision: str = ""

    @classmethod
    def read(cls, path: Path) -> SourceVersion | None:
        """The recorded version; None if the record is missing or damaged."""
        match read_record(path):
            case {"total_size": int(total_size), "sha256": str(sha256), **rest}:
                return cls(total_size, sha256, str(rest.get("revision", "")))
        return None

    def agrees_with(self, other: SourceVersion) -> bool:
        """Whether both may be the same content: a hash that is not known excludes nothing."""
        unknown = not self.sha256 or not other.sha256
        return self.total_size == other.total_size and (unknown or self.sha256 == other.sha256)


class HashMismatchError(Exception):
    """The content of a whole file does not have the hash that the provider sent."""


class CacheEntry:
    """One file of one model in a cache.

    Args:
        root: the cache's folder.
        model_id: the model.
        file_path: a path from `check_file_path`.
        space: makes room for it, and keeps what does not match; None if it is not going to be
            fetched: then one that does not match is removed.
    """

    def __init__(
        self,
        root: Path,
        model_id: ModelId,
        file_path: PurePosixPath,
        space: CacheSpace | None = None,
    ) -> None:
        self.model_id = model_id
        self.file_path = file_path
        self._root = root
        self._inner = PurePosixPath(folder_name(model_id)) / file_path
        self._state = root / STATE_FOLDER
        self._record = state_file(root, self._inner, ".json")
        self.part = state_file(root, self._inner, ".part")
        self.part_record = state_file(root, self._inner, ".part.json")
        self.space = space
        self._verified = space.verified if space else VerifiedFiles()

    def place(self) -> Path:
        """The path of the whole file, which need not exist.

        Raises:
            InvalidPathError: a symlink leads out of the cache.
        """
        return resolve_inside(self._root, self._inner)

    def find(self) -> CachedFile | None:
        """The whole file; trusted without reading it if its size and time are the recorded ones."""
        return self._check(hashed=False)

    def verify(self) -> CachedFile | None:
        """The whole file if its content has the recorded hash; a damaged one is kept aside.

        It is read unless it has been read before and is unchanged, see `VerifiedFiles`.
        """
        return self._check(hashed=True)

    def _check(self, hashed: bool) -> CachedFile | None:
        with disk_errors():
            record = read_record(self._record)
            place = self.place()
            if not record or not place.is_file():
                return None
            facts = place.stat()
            touched = facts.st_mtime_ns != record.get("mtime_ns")
            sha256, revision = str(record.get("sha256")), str(record.get("revision", ""))
            if facts.st_size == record.get("size"):
                if not hashed and not touched:
                    return CachedFile(place, facts.st_size, sha256, revision)
                found = self._verified.hash(place)
                if found == sha256:
                    if touched:
                        self.record(place, sha256, revision)
                    return CachedFile(place, facts.st_size, sha256, revision)
            else:
                found = f"{facts.st_size} bytes instead of {record.get('size')}"
            self.set_aside(sha256, found)
            return None

    def record(self, place: Path, sha256: str, revision: str = "") -> CachedFile:
        """Records size, hash, time and revision of a whole file."""
        found = place.stat()
        facts = {"size": found.st_size, "sha256": sha256, "mtime_ns": found.st_mtime_ns}
        if revision:
            facts["revision"] = revision
        write_json(self._record, {"file": str(self._inner), **facts})
        return CachedFile(place, found.st_size, sha256, revision)

    def discard(self) -> None:
        """Removes the whole file and its record, if they exist."""
        with disk_errors():
            self._forget()
            self.place().unlink(missing_ok=True)

    def set_aside(self, expected: str, found: str, file: Path | None = None) -> None:
        """Takes a file that does not match its hash out of use, with its record.

        Does nothing to a whole file that has been replaced meanwhile.

        Args:
            expected: the hash that it should have.
            found: what it has.
            file: a part of the cache; by default the whole file.
        """
        with disk_errors():
            if file is None:
                if str((read_record(self._record) or {}).get("sha256")) != expected:
                    return
                self._forget(shared=True)
            file = file or self.place()
            with contextlib.suppress(FileNotFoundError):  # another process did it
                if self.space is None:
                    file.unlink()
                else:
                    self.space.quarantine.take(
                        file, self.model_id, self.file_path, expected=expected, found=found
                    )

    def adopt(
        self, blobs: Blobs, sha256: str, size: int | None = None, revision: str = ""
    ) -> CachedFile | None:
        """Makes a content that is on the disk already the whole file, by a link.

        Only the holder of the part may call it.

        Args:
            blobs: where the content may be.
            sha256: its hash, which is checked.
            size: its size in bytes; None is any.
            revision: see `CachedFile`.

        Returns:
            None if it is not there, does not match, or cannot be linked.
        """
        # A name of its own: a cancelled fetch may still read its link when the next one begins.
        link = self.part.with_suffix(f".{token_hex(4)}.link")
        with disk_errors():
            self._state.mkdir(parents=True, exist_ok=True)
            if not blobs.link(sha256, link, size):
                return None
            try:
                if self._verified.hash(link) != sha256:
                    return None
                place = self.place()
                place.parent.mkdir(parents=True, exist_ok=True)
                self._forget()
                link.replace(place)
                self._verified.renamed(place)
                file = self.record(place, sha256, revision)
                if self.space:
                    self.space.tell()
                return file
            except FileNotFoundError:
                return None
            finally:
                link.unlink(missing_ok=True)  # it stays where both are the same file

    def replace(self, part: Path, place: Path, sha256: str) -> None:
        """Renames a part to the whole file, and names it by its hash."""
        self._forget()
        if self.space:
            self.space.blobs.keep(part, sha256)
        part.replace(place)

    def share(self, file: CachedFile) -> None:
        """Lets others link the whole file, see `Blobs`."""
        if self.space:
            self.space.blobs.keep(file.path, file.sha256)

    def _forget(self, *, shared: bool = False) -> None:
        """Takes the whole file out of the blobs before it is removed or replaced.

        Its record goes first, so that nobody compares the next file with it.
        """
        record = read_record(self._record) if self.space else None
        self._record.unlink(missing_ok=True)
        if self.space and record:
            self.space.blobs.forget(self.place(), str(record.get("sha256")), shared=shared)

    def open_part(self) -> PartFile | None:
        """The part with what an earlier attempt left in it; None if it cannot be had at the moment.

        Another fetch holds it then, or it was not to be written any more and is gone now.
        """
        with disk_errors():
            self._state.mkdir(parents=True, exist_ok=True)
            descriptor = self._open_descriptor()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = os.fstat(descriptor)
                # The previous holder may have renamed or removed it between open and lock.
                if not os.path.samestat(found, self.part.stat()):
                    raise BlockingIOError
                if found.st_nlink > 1 or not found.st_mode & stat.S_IWUSR:
                    # Its holder was killed when it was whole: others may have the content already.
                    self.part.unlink()
                    raise BlockingIOError
                return PartFile(self, descriptor)
            except (BlockingIOError, FileNotFoundError):
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise

    def _open_descriptor(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(self.part, flags, 0o644)
        except PermissionError:
            if not self.part.is_file() or self.part.stat().st_mode & stat.S_IWUSR:
                raise
            return os.open(self.part, os.O_RDONLY | os.O_CLOEXEC)


def cached_entries(
    root: Path, model_id: ModelId, space: CacheSpace | None = None
) -> list[CacheEntry]:
    """The files in the folder of a model; for `space` see `CacheEntry`."""
    with disk_errors():
        folder = root / folder_name(model_id)
        paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return [CacheEntry(root, model_id, PurePosixPath(path), space) for path in paths]


class PartFile:
    """A file that is being fetched, locked against other processes until it is closed.

    Its methods run in threads and exclude each other, so that a cancelled fetch can close it during
    a write.
    """

    def __init__(self, entry: CacheEntry, descriptor: int) -> None:
        self._entry = entry
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._closed = False
        self._place: Path | None = None
        self.source = SourceVersion.read(entry.part_record)
        self.written = os.fstat(descriptor).st_size
        # What an earlier attempt wrote may be of another version of the file.
        self.resumed = self.written > 0
        self._hash = hashlib.sha256()
        if self.source is None or self.written > self.source.total_size:
            self._truncate()
        elif self.written:
            self._hash = digest(entry.part)

    def begin(self, source: SourceVersion, offset: int) -> None:
        """Records which version follows from `offset`, which is 0 or the end of what is written.

        Raises:
            ResourceExhaustedError: the file does not fit on the disk.
        """
        with self._lock, disk_errors():
            if offset == 0:
                self._truncate()
            self.resumed = offset > 0
            self._make_room(source)
            self.source = source
            write_json(self._entry.part_record, asdict(source))

    def append(self, blocks: Iterable[bytes]) -> None:
        """Appends blocks.

        Raises:
            ResourceExhaustedError: the disk is full, even without what is not in use.
        """
        with self._lock, disk_errors():
            if self._closed:
                return
            for block in blocks:
                rest = memoryview(block)
                while rest:
                    count = self._write(rest)
                    self._hash.update(rest[:count])
                    self.written += count
                    rest = rest[count:]

    def _write(self, block: memoryview) -> int:
        try:
            return os.pwrite(self._descriptor, block, self.written)
        except OSError as error:
            # Others write to the disk too: there was room when this fetch began.
            if error.errno not in DISK_FULL or self.source is None:
                raise
        self._make_room(self.source)
        return os.pwrite(self._descriptor, block, self.written)

    def _make_room(self, source: SourceVersion) -> None:
        """Makes room for what is still to come.

        The part counts already, with what is on the disk and what its record announces.
        """
        if self._entry.space:
            self._entry.space.make_room(source.total_size - self.written, of=self._entry.part)

    def finish(self) -> CachedFile:
        """Turns the part into the whole file: flushed, renamed, recorded.

        One that another model has already becomes a link to that.

        Raises:
            HashMismatchError: the content does not have the hash that the provider sent. If all of
                it was received now, it is kept aside.
        """
        with self._lock, disk_errors():
            sha256 = self._hash.hexdigest()
            if self.source and self.source.sha256 and sha256 != self.source.sha256:
                if not self.resumed:
                    self._entry.set_aside(self.source.sha256, sha256, self._entry.part)
                raise HashMismatchError
            revision = self.source.revision if self.source else ""
            if self._entry.space and (
                file := self._entry.adopt(self._entry.space.blobs, sha256, self.written, revision)
            ):
                self._entry.part.unlink(missing_ok=True)
            else:
                file = self._rename(sha256, revision)
            self._entry.part_record.unlink(missing_ok=True)
            sync_folder(file.path.parent)
            self._place = file.path
            return file

    def _rename(self, sha256: str, revision: str) -> CachedFile:
        os.fsync(self._descriptor)
        os.fchmod(self._descriptor, WHOLE_FILE_MODE)
        place = self._entry.place()
        place.parent.mkdir(parents=True, exist_ok=True)
        self._entry.replace(self._entry.part, place, sha256)
        return self._entry.record(place, sha256, revision)

    def open_reader(self) -> FileIO:
        """Opens the part for reading, now and as it grows; stays valid after the rename."""
        with self._lock, disk_errors():
            return FileIO(self._place or self._entry.part)

    def close(self, keep: bool = True) -> None:
        """Releases the lock; what is written stays for a later attempt if `keep` is true."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if not self._place and not (keep and self.written):
                    with contextlib.suppress(OSError):
                        self._entry.part.unlink(missing_ok=True)
                        self._entry.part_record.unlink(missing_ok=True)
            finally:
                os.close(self._descriptor)

    def _truncate(self) -> None:
        os.ftruncate(self._descriptor, 0)
        self.written = 0
        self.resumed = False
        self._hash = hashlib.sha256()
