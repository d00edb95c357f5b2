"""Model files for the callers, from the cache or while they are being fetched."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from shared.errors import OutOfRangeError
from shared.files.client import ModelFiles
from shared.model_ids import ModelId


@dataclass(frozen=True, slots=True)
class FilePiece:
    """A piece of a file, with the fields of `ModelFileChunk`.

    `data` is valid until the next piece is requested.
    """

    data: memoryview
    offset: int
    total_size: int
    is_last: bool
    sha256: str = ""
    revision: str = ""


async def stream_file(
    files: ModelFiles, model_id: ModelId, file_path: str, offset: int, piece_bytes: int
) -> AsyncGenerator[FilePiece]:
    """The pieces of a file from `offset` to the end, in order; only the last one has `is_last`.

    A file that is not in the cache is passed on while it is being fetched.

    Raises:
        OutOfRangeError: the offset is negative or beyond the file's end.
        As `ModelFiles.fetch`.
    """
    if offset < 0:
        raise OutOfRangeError(f"offset {offset} is negative", field="offset")
    async with files.open(model_id, file_path) as reader:
        total = reader.total_size
        if offset > total:
            raise OutOfRangeError(
                f"offset {offset} is beyond the file's {total} bytes", field="offset"
            )
        sha256 = reader.sha256
        if offset == total:
            whole = await reader.whole_sha256()
            yield FilePiece(memoryview(b""), offset, total, True, whole, reader.revision)
        revision = reader.revision
        async with aclosing(reader.blocks(offset)) as blocks:
            async for block in blocks:
                for start in range(0, len(block), piece_bytes):
                    data = block[start : start + piece_bytes]
                    is_last = offset + len(data) == total
                    yield FilePiece(data, offset, total, is_last, sha256, revision)
                    offset += len(data)
                    sha256 = revision = ""
