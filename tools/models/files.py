"""Verified files: hashing, copying and unpacking without ever holding one whole in memory."""

import hashlib
import shutil
import tarfile
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from tools.models.manifest import Asset


class SourceError(Exception):
    """A source did not provide the listed file; the message is a clause for a sentence.

    `damaged` separates a file that arrived and is wrong from one that is not available.
    """

    def __init__(self, message: str, *, damaged: bool = False) -> None:
        super().__init__(message)
        self.damaged = damaged


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check(path: Path, origin: str, *hashes: str) -> None:
    """Raise SourceError unless the file exists and has one of these hashes."""
    if not path.is_file():
        raise SourceError(f"{origin} has no {path.name}", damaged=True)
    found = sha256_of(path)
    if found not in hashes:
        listed = " or ".join(hashes)
        raise SourceError(
            f"{path.name} from {origin} has SHA-256 {found}; the list says {listed}", damaged=True
        )


def is_present(asset: Asset, root: Path) -> bool:
    """Whether every file of the asset is in the models folder `root` and holds what is listed."""
    return all(
        (path := root / asset.folder / file.path).is_file()
        and (hashes := [c.sha256 for c in asset.contents(file) if c.size == path.stat().st_size])
        and sha256_of(path) in hashes
        for file in asset.files
    )


def extract(archive: Path, member: str, target: Path) -> None:
    """Copy one member of a zip or a gzipped tar to `target`; `!` descends into inner zips.

    Only the named member is read, and its own path is never used for writing. SourceError if the
    archive has no such member.
    """
    try:
        with ExitStack() as stack:
            if archive.name.endswith(".tgz"):
                tar = stack.enter_context(tarfile.open(archive, "r:gz"))
                stream: IO[bytes] | None = tar.extractfile(member)
            else:
                stream = stack.enter_context(archive.open("rb"))
                for name in member.split("!"):
                    inner = stack.enter_context(zipfile.ZipFile(stream))
                    stream = stack.enter_context(inner.open(name))
            if stream is None:
                raise KeyError(member)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
    except (KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise SourceError(f"{archive.name} has no {member}", damaged=True) from error
