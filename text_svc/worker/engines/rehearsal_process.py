"""The child processes of `rehearsal`: each form is compiled and followed as an engine would.

All messages are JSON, one per line:

    in:  what makes the stage, once
         {"json_schema": …}, {"regex": …}, {"grammar": …} or {"calls": …}
    out: {"seconds": of all processors together, "bytes": that the process has grown by, "last":
             whether the process ends now}, or {"error": why not}, after which it ends
"""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Callable
from typing import Any, Protocol

from shared.process import die_with_parent
from text_svc.link.json_lines import BlockingJsonLines

# What compiled forms may take in memory, and all that the process may reserve.
MEMORY_BYTES = 512 << 20
DATA_BYTES = 2 << 30
# Tokens that are tried: a form may be quick to compile and slow to follow.
TOKENS = 32
# The time and the place that the library writes before a message.
_SOURCE = re.compile(r"\[[0-9:]+\] \S+:[0-9]+: ")


class Stage(Protocol):
    """What follows forms."""

    def seconds(self, kind: str, text: str) -> float:
        """What a form takes of all processors together.

        Raises:
            Exception: it cannot be compiled; the stage is of no use afterwards.
        """


def serve(make: Callable[[dict[str, Any]], Stage]) -> None:
    """Runs until stdin ends, or until a form has failed or memory is used up.

    Args:
        make: makes the stage of a setup.
    """
    die_with_parent(int(sys.argv[1]))
    os.nice(5)  # models that serve have priority
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = DATA_BYTES if hard == resource.RLIM_INFINITY else min(DATA_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    lines = BlockingJsonLines()
    setup = lines.receive()
    if setup is None:
        return
    try:
        stage = make(setup)
    except Exception as error:  # noqa: BLE001  # the parent reports it
        lines.send({"error": str(error)})
        return
    begun = size = _peak_bytes()
    lines.send({"seconds": 0.0, "bytes": 0})
    # Compiled forms stay in memory, so the process ends in time for the next one to have enough.
    while size - begun < MEMORY_BYTES // 2 and (request := lines.receive()) is not None:
        [(kind, text)] = request.items()
        try:
            seconds = stage.seconds(kind, text)
        except Exception as error:  # noqa: BLE001  # the form's
            lines.send({"error": _reason(error)})
            return
        before, size = size, _peak_bytes()
        grown, last = size - before, size - begun >= MEMORY_BYTES // 2
        lines.send({"seconds": seconds, "bytes": grown, "last": last})


def _peak_bytes() -> int:
    """Most memory that the process has had; the sandbox hides /proc."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _reason(error: Exception) -> str:
    """What a library says, without the place in its sources."""
    last = _SOURCE.sub("", (str(error).strip() or repr(error)).splitlines()[-1])
    return f"cannot be compiled: {last.rpartition('Check failed: ')[2].strip()[:300]}"
