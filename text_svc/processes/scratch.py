"""The folder of a text_svc for temporary files of its processes, such as their sockets.

A service that is killed cannot remove it, so the next one does. A folder is in use while it is
locked; the lock ends with its service, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

log = logging.getLogger(__name__)

PREFIX = "text-svc."
# What the fork server has of it; models have names that nobody can guess.
FORK_SERVER = "fork-server"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder of this process, which is gone afterwards. What dead processes left goes first."""
    _remove_abandoned()
    folder, lock = _make()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def child_scratch(folder: Path) -> Path:
    """A place for one process in that folder, which others cannot guess: they cannot list it."""
    return folder / token_hex(8)


def _make() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        try:
            descriptor = _open(folder)
        except FileNotFoundError:  # one that starts beside this one was faster
            continue
        try:
            locked = _lock(descriptor)
        except OSError:  # no locks: then no service removes the folder of another one
            return folder, descriptor
        with contextlib.suppress(FileNotFoundError):
            if locked and os.path.samestat(os.fstat(descriptor), folder.stat()):
                return folder, descriptor
        os.close(descriptor)


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or gone meanwhile
            descriptor = _open(folder)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid() and _lock(descriptor):
                    shutil.rmtree(folder, ignore_errors=True)
                    log.info("removed the folder of a service that was killed")
            finally:
                os.close(descriptor)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _lock(descriptor: int) -> bool:
    """Locks a folder for this process; false while another one has it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
