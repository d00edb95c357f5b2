"""How much of a model's weights its process has read, as the kernel tells it.

Engines map the files of weights into memory: pages become resident as they are read. So the share
is that of the files' pages that the process, or one that it has started, has had resident.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from shared.telemetry.process_metrics import process_tree

# Time between two looks; the kernel walks through the pages, some milliseconds for each GiB.
LOOK_SECONDS = 0.25
# Files with weights: of the original, of OpenVINO, of LiteRT.
_SUFFIXES = (".safetensors", ".bin", ".tflite", ".litertlm")


class LoadShare:
    """The share of the weights that one load has read.

    Args:
        place: a file of weights, or a folder all of whose files of weights are read; links are
            followed.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        # By inode.
        self._sizes: dict[int, int] = {}
        self._read: Counter[int] = Counter()

    def of(self, pid: int) -> float | None:
        """The share so far, from 0 to 1; None where it is not known. Blocks.

        Args:
            pid: the process that loads; those that it has started count too.
        """
        if not self._read:  # the process may be about to make the links
            self._sizes = _sizes(self._place)
        total = sum(self._sizes.values())
        for process in process_tree(pid):
            for inode, resident in _resident(process, self._sizes).items():
                # A file that was closed again, such as one of several parts, stays read.
                self._read[inode] = max(self._read[inode], resident)
        read = sum(min(self._read[inode], size) for inode, size in self._sizes.items())
        return read / total if total and read else None

    async def follow(self, pid: int, tell: Callable[[float | None], None]) -> None:
        """Tells the share again and again, until cancelled."""
        while True:
            tell(await asyncio.to_thread(self.of, pid))
            await asyncio.sleep(LOOK_SECONDS)


def _sizes(place: Path) -> dict[int, int]:
    """The sizes of the files of weights, by inode."""
    paths = [place] if place.is_file() else place.rglob("*")
    files = [path.stat() for path in paths if path.suffix in _SUFFIXES and path.is_file()]
    return {file.st_ino: file.st_size for file in files}


def _resident(pid: int, inodes: Iterable[int]) -> dict[int, int]:
    """Resident bytes of these files in a process; the mapping with most, if there are several."""
    try:
        lines = Path("/proc", str(pid), "smaps").read_text(errors="replace").splitlines()
    except OSError:  # it has ended, or the system has no such file
        return {}
    found: dict[int, int] = {}
    wanted, inode = set(inodes), 0
    for line in lines:
        words = line.split(None, 5)
        if words[0] == "Rss:" and inode:
            found[inode] = max(found.get(inode, 0), int(words[1]) << 10)
        elif not words[0].endswith(":"):  # the head of a mapping: range, rights, offset, device
            number = int(words[4]) if len(words) > 4 and words[4].isdecimal() else 0
            inode = number if number in wanted else 0
    return found
