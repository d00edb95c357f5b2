"""Forks for the fork server, and the command that the system shows for a process.

A process made by `os.fork` would be a child of the fork server: it would end with it, and only the
fork server would learn how it ended. Here it is a child of the fork server's parent, the front, as
if that had started it (clone(2), CLONE_PARENT). Linux with glibc, on the processors in `_CLONE`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_CLONE_PARENT, _CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x8000, 0x200000, 0x1000000
# By processor: the number of the system call; its argument, from 0, that is the address of the
# thread's id; and where that is in glibc's record of a thread.
_CLONE = {"x86_64": (56, 3, 720), "aarch64": (220, 4, 208)}
_forked = False
# Of /proc/PID/stat, after the name: where the command lies in memory.
_ARGUMENTS = slice(45, 47)


def supported() -> bool:
    """Whether `fork_beside` works on this system."""
    return (
        sys.platform == "linux"
        and platform.machine() in _CLONE
        and platform.libc_ver()[0] == "glibc"
        and hasattr(os, "pidfd_open")
    )


def is_forked() -> bool:
    """Whether `fork_beside` has made this process, or one that it was forked from."""
    return _forked


def threads() -> int:
    """How many threads this process has, those of libraries too."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 (names are enough)


def fork_beside() -> int:
    """As `os.fork`, but the new process is a child of this one's parent.

    This process has one thread. Handlers that C libraries have registered for forks do not run.

    Raises:
        OSError: the system cannot.
    """
    libc = ctypes.PyDLL(None, use_errno=True)  # keeps Python's lock, as `os.fork` does
    libc.syscall.restype = ctypes.c_long
    number, place, offset = _CLONE[platform.machine()]
    arguments = [0] * 5
    arguments[0] = _CLONE_PARENT | _CLONE_CHILD_CLEARTID | _CLONE_CHILD_SETTID | signal.SIGCHLD
    arguments[place] = _thread_id_address(libc, offset)
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid: int = libc.syscall(ctypes.c_long(number), *map(ctypes.c_void_p, arguments))
    error = ctypes.get_errno()
    if pid == 0:
        global _forked
        _forked = True
        python.PyOS_AfterFork_Child()
        return 0
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, os.strerror(error))
    return pid


def _thread_id_address(libc: ctypes.PyDLL, offset: int) -> int:
    """Where glibc keeps the id of this thread, which is another one after a fork."""
    libc.pthread_self.restype = ctypes.c_size_t
    address = int(libc.pthread_self()) + offset
    if ctypes.c_int32.from_address(address).value != os.getpid():
        raise OSError(errno.ENOSYS, "this C library keeps the id of a thread elsewhere")
    return address


def show_command(words: Sequence[str]) -> None:
    """Makes the system show these words as the command of this process.

    What is longer than the command that the process was started with is cut off. The first call,
    in this process or the one that it was forked from, comes before a sandbox.
    """
    begin, end = _command_memory()
    text = b"\0".join(word.encode() for word in words)[: end - begin - 1]
    ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)


@cache
def _command_memory() -> tuple[int, int]:
    """Where the system reads the command of this process: begin and end."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = map(int, fields[_ARGUMENTS])
    return begin, end
