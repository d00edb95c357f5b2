"""What is in a cache and how much of it would be free without some of it.

A content counts once, however many models have it, and one that is linked from another service's
cache counts there.

Everything here blocks on the disk: call it in a thread.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.files.blobs import Inode


@dataclass(frozen=True)
class Unit:
    """A folder that is removed as a whole.

    Attributes:
        model: name of its model's folder.
        folder: the folder.
        used_at: Unix time of its last use.
        names: how many names each of its files has in it.
    """

    model: str
    folder: Path
    used_at: float
    names: Counter[Inode]


@dataclass(frozen=True)
class Gain:
    """Bytes that a removal gives back: of the cache's limit, and of the disk."""

    cache: int
    disk: int


class Inventory:
    """The units of a cache, and their files.

    Args:
        folders: of the units: name of the model, folder, time of last use.
        blobs: contents that have a name by their hash, too.
        elsewhere: contents of another cache, which count there.
    """

    def __init__(
        self,
        folders: Iterable[tuple[str, Path, float]],
        blobs: Iterable[Inode] = (),
        elsewhere: Iterable[Inode] = (),
    ) -> None:
        self._sizes: dict[Inode, int] = {}
        self._links: dict[Inode, int] = {}
        self._elsewhere = set(elsewhere)
        self._blobs = set(blobs)
        self.units = [
            Unit(model, folder, used_at, self._scan(folder)) for model, folder, used_at in folders
        ]
        self._names = Counter[Inode]()
        for unit in self.units:
            self._names += unit.names

    def __contains__(self, inode: Inode) -> bool:
        return inode in self._sizes

    @property
    def used_bytes(self) -> int:
        """Bytes of all contents that count here."""
        return sum(size for each, size in self._sizes.items() if each not in self._elsewhere)

    @property
    def saved_bytes(self) -> int:
        """Bytes that copies would take in addition."""
        return (
            sum(self._sizes[each] * names for each, names in self._names.items()) - self.used_bytes
        )

    def gain(self, units: Collection[Unit]) -> Gain:
        """What the removal of units gives back."""
        names = Counter[Inode]()
        for unit in units:
            names += unit.names
        cache = disk = 0
        for each, count in names.items():
            if count == self._names[each] and each not in self._elsewhere:
                cache += self._sizes[each]
                if self._links[each] <= count + (each in self._blobs):
                    disk += self._sizes[each]
        return Gain(cache, disk)

    def _scan(self, folder: Path) -> Counter[Inode]:
        names = Counter[Inode]()
        for path in files_in(folder):
            with contextlib.suppress(FileNotFoundError):
                found = path.lstat()
                inode = found.st_dev, found.st_ino
                self._sizes[inode] = found.st_size
                self._links[inode] = found.st_nlink
                names[inode] += 1
        return names


def files_in(folder: Path) -> Iterator[Path]:
    """All files in a folder and below it."""
    for place, _, names in os.walk(folder):
        for name in names:
            yield Path(place, name)
