"""Memory of this process below Python: what of it is resident, and giving it back (Linux)."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

_PAGE = mmap.PAGESIZE
_MADV_DONTNEED = 4


def trim() -> None:
    """Gives memory that was freed back to the system; nothing with another C library than glibc."""
    if found := _function("malloc_trim"):
        found(0)


def let_go_of_files(folder: Path) -> None:
    """Unmaps the pages of a folder's files, which are mapped again where they are read.

    They come from the system's cache of files then, or from the disk if memory was short, as with
    any mapped file. Mappings that can be written are left alone: they may differ from the file.
    """
    madvise = _function("madvise")
    if madvise is None:
        return
    prefix = f"{folder.resolve()}/"
    try:
        mappings = Path("/proc/self/maps").read_text()
    except OSError:  # in a sandbox, which cannot name files of a process that is not there yet
        return
    for line in mappings.splitlines():
        addresses, rights, *_, path = f"{line} ".split(maxsplit=5)
        if path.startswith(prefix) and "w" not in rights:
            begin, end = (int(number, 16) for number in addresses.split("-"))
            madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)


def resident_of(address: int, size: int) -> int:
    """Bytes of a mapping that are in memory.

    Args:
        address: where it begins, a multiple of the page size.
        size: its bytes.
    """
    mincore = _function("mincore")
    pages = (ctypes.c_ubyte * -(-size // _PAGE))()
    if mincore is None or mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages):
        return size
    return (len(pages) - bytes(pages).count(0)) * _PAGE


def _function(name: str) -> ctypes._NamedFuncPointer | None:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), name, None)
