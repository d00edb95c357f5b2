"""The lease on a state folder, as files: who holds it, with which epoch, and signs of life.

Each epoch has a file of its own, "lease-EPOCH.json". To create the next one is to take the lease,
which only one process can do; its holder replaces it again and again. The highest one counts. So it
works where a file system has no locks, such as on NFS. Where it has them, the lock of the folder
tells at once that a holder on the same machine has ended.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

# A sign of life is much smaller; what is larger is none.
MAX_FILE_BYTES = 4096
_PREFIX, _SUFFIX = "lease-", ".json"
# File systems without hard links say so by one of these.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class Seen:
    """The newest lease of a folder, as it was at one look.

    Attributes:
        epoch: its number.
        content: its bytes, which change with every sign of life.
        ended: its holder has given it back.
        dead: its holder has certainly ended: it was on this machine, and its lock is free.
        holder: for people: its host and process.
    """

    epoch: int
    content: bytes
    ended: bool = False
    dead: bool = False
    holder: str = ""


class LeaseFiles:
    """The lease files of one folder, for one process.

    Args:
        folder: is created if missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._token = secrets.token_hex(8)
        self._lock: int | None = None
        self._renewals = 0
        self._warned = False

    def look(self) -> tuple[Seen | None, bool]:
        """The newest lease, and whether somebody else has locked the folder.

        Raises:
            OSError: the folder cannot be made or read.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        busy, locked = self._try_lock()
        epoch = max(self._epochs(), default=0)
        if not epoch:
            return None, busy
        content = self._read(epoch)
        facts = _facts(content)
        dead = locked and bool(facts.get("locked")) and facts.get("machine") == _machine()
        holder = f"{facts.get('host', 'unknown')}, process {facts.get('pid', 'unknown')}"
        return Seen(epoch, content, bool(facts.get("ended")), dead, holder), busy

    def claim(self, epoch: int) -> bool:
        """Takes the lease with a new epoch; false if another process was faster.

        Raises:
            OSError: it cannot be written.
        """
        self._try_lock()
        if not self._create(epoch):
            return False
        epochs = self._epochs()
        if max(epochs) > epoch:  # this process was stopped meanwhile, and its epoch had been used
            self._remove(epoch)
            return False
        for each in epochs:
            if each < epoch:
                self._remove(each)
        return True

    def renew(self, epoch: int) -> bool:
        """Gives a sign of life; false if the lease is lost.

        Raises:
            OSError: it cannot be written, or not be read.
        """
        if not self.holds(epoch):
            return False
        self._try_lock()
        self._renewals += 1
        self._write(self._path(epoch), self._content())
        return True

    def holds(self, epoch: int) -> bool:
        """Whether this process still holds the lease. One whose files were all removed does.

        Raises:
            OSError: the folder cannot be read.
        """
        try:
            epochs = self._epochs()
        except FileNotFoundError:
            epochs = []
        if not epochs:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._try_lock()
            return self._create(epoch)
        # Lower ones alone are of a process that found the folder emptied.
        return max(epochs) == epoch and _facts(self._read(epoch)).get("token") == self._token

    def give_back(self, epoch: int) -> None:
        """Lets the next process take the lease at once, if this one still holds it."""
        try:
            if epoch and self.holds(epoch):
                self._write(self._path(epoch), self._content(ended=True))
        except OSError as error:
            log.warning("the lease cannot be given back", extra={"error": error.strerror})
        self.unlock()

    def unlock(self) -> None:
        """Frees the folder's lock."""
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    def _try_lock(self) -> tuple[bool, bool]:
        """Whether another process has the lock; and whether this one has it now."""
        if self._lock is not None and not os.path.samestat(
            os.fstat(self._lock), self._folder.stat()
        ):
            self.unlock()  # another folder is in its place
        if self._lock is not None:
            return False, True
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return True, False
            if not self._warned:
                log.info("the state folder cannot be locked", extra={"error": error.strerror})
            self._warned = True
            return False, False
        self._lock = descriptor
        return False, True

    def _epochs(self) -> list[int]:
        names = [path.name for path in self._folder.iterdir()]
        numbers = (
            name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
            for name in names
            if name.startswith(_PREFIX) and name.endswith(_SUFFIX)
        )
        return [int(number) for number in numbers if number.isdecimal() and len(number) < 18]

    def _path(self, epoch: int) -> Path:
        return self._folder / f"{_PREFIX}{epoch}{_SUFFIX}"

    def _read(self, epoch: int) -> bytes:
        """What lies in the place of an epoch; nothing if it is no file, or just gone."""
        try:
            descriptor = os.open(self._path(epoch), os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return b""
        try:
            return os.read(descriptor, MAX_FILE_BYTES)
        except (IsADirectoryError, BlockingIOError):
            return b""
        finally:
            os.close(descriptor)

    def _content(self, *, ended: bool = False) -> bytes:
        facts = {
            "token": self._token,
            "renewals": self._renewals,
            "renewed_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),  # for people alone
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "locked": self._lock is not None,
            "ended": ended,
        }
        return json.dumps(facts).encode()

    def _create(self, epoch: int) -> bool:
        """Creates the file of an epoch with its content; false if there is one."""
        place, part = self._path(epoch), self._part()
        try:
            part.write_bytes(self._content())
            try:
                os.link(part, place)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with place.open("xb") as file:
                    file.write(self._content())
        except FileExistsError:
            return False
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
        return True

    def _write(self, place: Path, content: bytes) -> None:
        part = self._part()
        try:
            part.write_bytes(content)
            part.replace(place)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise

    def _part(self) -> Path:
        return self._folder / f"lease.{self._token}.part"

    def _remove(self, epoch: int) -> None:
        with contextlib.suppress(OSError):
            self._path(epoch).unlink()


def _facts(content: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _machine() -> str:
    """Names this machine since its last start, whose processes share locks; empty if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
