"""What the process needs before it serves: the right MediaPipe, no reports home, a tuned allocator.

Importing this module is cheap. Its functions must be called before the first thread or task is
started.
"""

from __future__ import annotations

import ctypes
import os
from importlib.metadata import PackageNotFoundError, version

# `mediapipe_c`, `mediapipe_tasks` and `landmarks` use private names and memory layouts of this
# version. With another one they may read memory that holds something else.
MEDIAPIPE_VERSION = "1.2.2"

# Nothing listens on this address, so a connection is refused at once.
NOWHERE = "http://127.0.0.1:1"

# Parameters of mallopt (glibc, malloc.h) and their values in bytes. By default, a block of a
# frame's size is mapped anew each time and the kernel zeroes its pages: 1.1 ms instead of 0.04 ms
# for one copy of a 640 x 480 picture.
_M_TRIM_THRESHOLD, _TRIM_THRESHOLD = -1, 64 << 20
_M_MMAP_THRESHOLD, _MMAP_THRESHOLD = -3, 32 << 20
# By default there are eight arenas a core. Every stream has threads of its own, which MediaPipe
# starts, and what they leave free in one arena serves no other: 1.1 to 1.8 GB after some hundred
# streams.
_M_ARENA_MAX, _ARENAS = -8, 2


def mediapipe_fault() -> str:
    """A sentence that says what is wrong with the installed MediaPipe; empty if nothing is."""
    try:
        found = version("mediapipe")
    except PackageNotFoundError:
        found = ""
    if found == MEDIAPIPE_VERSION:
        return ""
    installed = f"mediapipe {found} is installed" if found else "mediapipe is not installed"
    return (
        f"{installed}, but vision_svc reads the memory of version {MEDIAPIPE_VERSION} directly: "
        "install the version that requirements/vision.txt pins"
    )


def refuse_reports(proxy: str = NOWHERE) -> None:
    """Sends MediaPipe's usage reports to `proxy`. Call it before the first task is closed.

    MediaPipe 1.2.2 reports to a Google host through libcurl whenever a task is closed. It has no
    switch for that, and it waits where the host's name cannot be resolved. libcurl follows the
    proxy variables of the environment, which nothing else in this process uses.
    """
    for name in ("no_proxy", "NO_PROXY"):
        os.environ.pop(name, None)
    for name in ("https_proxy", "HTTPS_PROXY"):
        os.environ[name] = proxy


def tune_allocator() -> None:
    """Lets the allocator reuse blocks of up to 32 MiB, and all threads share two arenas.

    Free memory above 64 MiB at the end of an arena is returned; the rest by `return_free_memory`.

    Call it before any thread is started. Without glibc it does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
    mallopt(_M_ARENA_MAX, _ARENAS)


def return_free_memory() -> None:
    """Gives the allocator's free pages back to the system (glibc)."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
