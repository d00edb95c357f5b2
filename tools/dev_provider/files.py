"""Model files on disk, read in chunks outside the event loop, with hashes where they are cheap."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shared.errors import InvalidArgumentError, ModelFileNotFoundError
from shared.model_ids import (
    at_revision,
    check_file_path,
    check_revision,
    parse_model_id,
    resolve_inside,
)

# The name that the default has on the HuggingFace hub.
DEFAULT_REVISION = "main"
# Read at once in a thread, and then split into chunks.
_BLOCK_BYTES = 4 << 20
# Files up to this size are hashed when first requested; larger ones while they are first sent.
_HASH_AT_ONCE_BYTES = 16 << 20


@dataclass(frozen=True)
class OpenFile:
    """An open file, ready to be sent.

    Attributes:
        file: open for reading, at `offset`.
        size: of the whole file, in bytes.
        offset: where reading starts.
        sha256: of the whole file in hex, "" while unknown.
        key: identifies the file's current content, for the cache of hashes.
    """

    file: BinaryIO
    size: int
    offset: int
    sha256: str
    key: tuple[int, ...]


class ModelFolder:
    """Files under `root/<org>/<name>/` (or `root/<name>/`).

    Those of a revision are in `root/<org>/<name>@<revision>/`, where "/" in the revision is "%2F".
    Without such a folder, "main" is the default.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._hashes: dict[tuple[int, ...], str] = {}

    def open(self, model_id: str, file_path: str, offset: int = 0, revision: str = "") -> OpenFile:
        """Opens a file of a model. Blocks on the disk.

        Raises:
            InvalidArgumentError: the id, the path, the revision or the offset is malformed.
            ModelFileNotFoundError: there is no such file or revision.
        """
        model, relative = parse_model_id(model_id), check_file_path(file_path)
        folder = self._root / at_revision(model, check_revision(revision).replace("/", "%2F"))
        if revision == DEFAULT_REVISION and not folder.is_dir():
            folder = self._root / model
        if revision and not folder.is_dir():
            raise ModelFileNotFoundError(f"{model} has no revision {revision!r}")
        path = resolve_inside(folder, relative)
        if not path.is_file():
            raise ModelFileNotFoundError(f"{model} has no file {relative}")
        file = path.open("rb")
        stat = os.fstat(file.fileno())
        if not 0 <= offset <= stat.st_size:
            file.close()
            raise InvalidArgumentError(
                f"offset {offset} is outside of the file's {stat.st_size} bytes", field="offset"
            )
        key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if key not in self._hashes and stat.st_size <= _HASH_AT_ONCE_BYTES:
            self._hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(offset)
        return OpenFile(file, stat.st_size, offset, self._hashes.get(key, ""), key)

    async def read(self, opened: OpenFile, chunk_bytes: int) -> AsyncIterator[bytes]:
        """Yields the bytes from the offset to the end, and closes the file.

        The hash of a file that is sent completely is cached.
        """
        sha256 = None if opened.offset or opened.sha256 else hashlib.sha256()
        block_bytes = max(1, _BLOCK_BYTES // chunk_bytes) * chunk_bytes
        with closing(opened.file):
            while block := await asyncio.to_thread(_read, opened.file, block_bytes, sha256):
                for start in range(0, len(block), chunk_bytes):
                    yield block[start : start + chunk_bytes]
        if sha256:
            self._hashes[opened.key] = sha256.hexdigest()


def _read(file: BinaryIO, size: int, sha256: hashlib._Hash | None) -> bytes:
    block = file.read(size)
    if sha256:
        sha256.update(block)
    return block
