"""Landlock: from a call on, this process and its children may open only what they were given.

The kernel enforces it, without any privilege, for as long as they live; a process may add a further
restriction and never take one back. https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

# System calls, which have the same numbers on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH, _RULE_NET_PORT = 1, 2
_PR_SET_NO_NEW_PRIVS = 38

_NET_BIND, _NET_CONNECT = 1, 2
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2


class _Right(IntFlag):
    """What may be done with a file or beneath a folder: LANDLOCK_ACCESS_FS_*."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


# The rights that a kernel of each ABI version handles: those below a bit.
_FIRST_UNHANDLED = {1: _Right.REFER, 2: _Right.TRUNCATE, 3: _Right.IOCTL_DEV, 4: _Right.IOCTL_DEV}
_ALL = _Right((1 << 16) - 1)
_OF_FILES = (
    _Right.EXECUTE | _Right.WRITE_FILE | _Right.READ_FILE | _Right.TRUNCATE | _Right.IOCTL_DEV
)

# What a caller may give for a path.
READ = _Right.READ_FILE | _Right.READ_DIR
RUN = READ | _Right.EXECUTE
# No links and no pipes: a process that reads the folder may not be restricted itself.
WRITE = (
    READ
    | (_Right.WRITE_FILE | _Right.TRUNCATE | _Right.REFER)
    | (_Right.MAKE_REG | _Right.MAKE_DIR | _Right.MAKE_SOCK)
    | (_Right.REMOVE_FILE | _Right.REMOVE_DIR)
)
DEVICE = _Right.READ_FILE | _Right.WRITE_FILE | _Right.IOCTL_DEV


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_fs", ctypes.c_uint64),
        ("handled_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class _NetPort(ctypes.Structure):
    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


@dataclass(frozen=True)
class Support:
    """What the kernel can restrict.

    Attributes:
        abi: the version of its interface; 0 is none at all.
        obstacle: why there is none.
    """

    abi: int
    obstacle: str = ""

    @property
    def files(self) -> bool:
        """Opening, making and removing files."""
        return self.abi >= 1

    @property
    def tcp(self) -> bool:
        """Binding and connecting TCP sockets (Linux 6.7)."""
        return self.abi >= 4

    @property
    def signals(self) -> bool:
        """Signals and abstract Unix sockets to processes outside (Linux 6.12)."""
        return self.abi >= 6


def support() -> Support:
    """Asks the kernel."""
    if sys.platform != "linux":
        return Support(0, "only Linux has it")
    try:
        abi = _call(_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    except OSError as error:
        return Support(0, _OBSTACLES.get(error.errno or 0, os.strerror(error.errno or 0)))
    return Support(abi)


_OBSTACLES = {
    errno.ENOSYS: "this kernel was built without it, or a filter of system calls hides it",
    errno.EOPNOTSUPP: "it is switched off on this kernel's command line (lsm=)",
    errno.EPERM: "a filter of system calls (seccomp) forbids it",
}


def restrict(allowed: Mapping[Path, int], connect_ports: Iterable[int] = ()) -> None:
    """Restricts this process, and all that it starts, to what is given here. There is no way back.

    Besides files it denies, where the kernel can, TCP, and signals and abstract sockets to
    processes outside. What is open already stays open.

    Args:
        allowed: READ, RUN, WRITE or DEVICE for each path and all beneath it; paths that do not
            exist are left out.
        connect_ports: TCP ports that it may connect to.

    Raises:
        OSError: the kernel cannot, see `support`.
        RuntimeError: the process has other threads, which would not be restricted.
    """
    with contextlib.suppress(PermissionError):  # the second time: the first one denies it
        if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 (names are enough)
            raise RuntimeError("a process is restricted before it starts threads")
    kernel = support()
    handled = _FIRST_UNHANDLED.get(kernel.abi, _Right.IOCTL_DEV << 1) - 1
    ruleset = _Ruleset(
        handled_fs=handled,
        handled_net=_NET_BIND | _NET_CONNECT if kernel.tcp else 0,
        scoped=_SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS if kernel.signals else 0,
    )
    # Kernels that know less of the structure take it, as long as the rest of it is zero.
    rules = _call(
        _CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(ctypes.sizeof(ruleset)), 0
    )
    try:
        for path, rights in allowed.items():
            _allow(rules, path, rights & handled)
        for port in connect_ports if kernel.tcp else ():
            rule = _NetPort(allowed=_NET_CONNECT, port=port)
            _call(_ADD_RULE, rules, _RULE_NET_PORT, ctypes.byref(rule), 0)
        take_no_privileges()
        _call(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def take_no_privileges() -> None:
    """From here on, no program that this process or a child starts has more privileges than it.

    Raises:
        OSError: the kernel cannot.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _allow(rules: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        rule = _PathBeneath(allowed=rights, parent_fd=descriptor)
        _call(_ADD_RULE, rules, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
