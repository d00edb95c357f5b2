"""The state of a file that is being fetched, shared by the download and its readers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from shared.files.cache import CachedFile, PartFile
from shared.model_ids import ModelId
from shared.settings import FileSettings
from shared.single_flight import SharedWork


@dataclass(frozen=True)
class FetchLimits:
    """Timeouts and retries of a fetch.

    Attributes:
        attempts: failed attempts in a row, none with a new byte, after which it gives up.
        patience_seconds: how long it goes on all the same while the provider is down or full,
            counted from the first of these attempts.
        backoff_seconds: wait after the first failure; doubled after each, with jitter.
        max_backoff_seconds: the longest wait.
        first_chunk_seconds: timeout for the first chunk (the provider may have to download).
        stall_seconds: timeout for each further chunk.
        chunk_bytes: largest chunk that is received.
        memory_bytes: of the chunks of all fetches that are not on the disk yet.
        parallel: files of a model's weights that are fetched at once.
        bytes_per_second: that all fetches together receive; 0 is no limit.
    """

    attempts: int = 4
    patience_seconds: float = 30.0
    backoff_seconds: float = 0.25
    max_backoff_seconds: float = 5.0
    first_chunk_seconds: float = 300.0
    stall_seconds: float = 60.0
    chunk_bytes: int = 4 << 20
    memory_bytes: int = 32 << 20
    parallel: int = 4
    bytes_per_second: int = 0

    @classmethod
    def of(cls, settings: FileSettings) -> FetchLimits:
        """The limits that a service's settings give."""
        return cls(
            patience_seconds=settings.provider_patience_seconds,
            chunk_bytes=settings.max_chunk_bytes,
            memory_bytes=settings.fetch_memory_mb << 20,
            parallel=settings.parallel_fetches,
            bytes_per_second=settings.fetch_bytes_per_second,
        )


class Fetch(SharedWork[CachedFile]):
    """A file that is being fetched, as its callers see it.

    Attributes:
        total_size: in bytes, 0 while unknown.
        sha256: as sent by the provider, "" while unknown.
        revision: as the provider has confirmed it, see `CachedFile`.
        written: bytes on disk.
        restarts: number of restarts at offset 0 after a part of the file was readable.
        part: set once `total_size` is known; None before, and for a file that was cached.
    """

    def __init__(self, model_id: ModelId, file_path: PurePosixPath) -> None:
        super().__init__()
        self.model_id = model_id
        self.file_path = file_path
        self.total_size = 0
        self.sha256 = ""
        self.revision = ""
        self.written = 0
        self.restarts = 0
        self.part: PartFile | None = None

    def __str__(self) -> str:
        return f"{str(self.file_path)[:80]!r} of model {self.model_id!r}"
