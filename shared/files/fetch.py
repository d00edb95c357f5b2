"""A file under way, as the one who fetches it and those who wait for it share it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from shared.files.cache import (
    CachedFile,
    PartFile,
)
from shared.single_flight import SharedWork


@dataclass(frozen=True)
class FetchLimits:
    """Waiting times and tries of a fetch.

    Attributes:
        attempts: tries in a row that bring no new byte before it is given up.
        backoff_seconds: wait after the first failure; doubled after each, with jitter.
        max_backoff_seconds: the longest wait.
        first_chunk_seconds: how long a provider may take to begin (it may have to download).
        stall_seconds: how long it may send nothing after that.
    """

    attempts: int = 4
    backoff_seconds: float = 0.25
    max_backoff_seconds: float = 5.0
    first_chunk_seconds: float = 300.0
    stall_seconds: float = 60.0


class Fetch(SharedWork[CachedFile]):
    """A file under way, as those see it who wait for it.

    Attributes:
        total_size: in bytes, 0 while unknown.
        sha256: as the provider says, "" while unknown.
        written: bytes on disk.
        restarts: how often the content was begun anew after a part of it was readable.
        part: set once `total_size` is known; None before, and for a file that was cached.
    """

    def __init__(self, model_id: str, file_path: PurePosixPath) -> None:
        super().__init__()
        self.model_id = model_id
        self.file_path = file_path
        self.total_size = 0
        self.sha256 = ""
        self.written = 0
        self.restarts = 0
        self.part: PartFile | None = None

    def __str__(self) -> str:
        return f"{str(self.file_path)[:80]!r} of model {self.model_id!r}"
