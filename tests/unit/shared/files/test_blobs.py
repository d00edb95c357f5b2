"""Contents that models share: nobody writes to them, nor mistakes one for another."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path, PurePosixPath

from shared.files.cache import CacheEntry, PartFile, SourceVersion
from shared.files.space import LEFTOVER_SECONDS, CacheSpace
from shared.model_ids import ModelId

OLD, NEW = b"old content", b"new content"
OLD_HASH, NEW_HASH = (hashlib.sha256(each).hexdigest() for each in (OLD, NEW))


def entry_in(root: Path, model: str = "org/a") -> CacheEntry:
    return CacheEntry(root, ModelId(model), PurePosixPath("weights"), CacheSpace(root))


def opened(entry: CacheEntry) -> PartFile:
    part = entry.open_part()
    assert part
    return part


def put(entry: CacheEntry, content: bytes) -> Path:
    part = opened(entry)
    try:
        part.begin(SourceVersion(len(content)), 0)
        part.append([content])
        return part.finish().path
    finally:
        part.close()


def test_a_part_whose_content_others_have_is_not_written(tmp_path: Path) -> None:
    """As after a kill between the name by its hash and the name in the model's folder."""
    entry = entry_in(tmp_path)
    place = put(entry, OLD)
    other = put(entry_in(tmp_path, "org/b"), OLD)
    place.rename(entry.part)
    assert other.samefile(entry.part)
    assert entry.open_part() is None
    part = opened(entry)
    part.begin(SourceVersion(len(NEW)), 0)
    part.append([NEW])
    part.close()
    assert other.read_bytes() == OLD


def test_a_file_that_is_being_replaced_is_not_taken_for_damaged(tmp_path: Path) -> None:
    entry = entry_in(tmp_path)
    put(entry, OLD)
    found = entry.find()
    assert found
    put(entry, NEW)
    # A reader of the old content, or who compared the new one with the old hash.
    entry.set_aside(found.sha256, NEW_HASH)
    found = entry.verify()
    assert found
    assert found.path.read_bytes() == NEW


def test_files_of_older_versions_are_not_writable_once_they_are_shared(tmp_path: Path) -> None:
    entry = entry_in(tmp_path)
    place = put(entry, OLD)
    (tmp_path / ".blobs" / OLD_HASH).unlink()
    place.chmod(0o644)
    file = entry.find()
    assert file
    entry.share(file)
    assert place.stat().st_mode & 0o777 == 0o444


def test_a_link_to_an_old_content_is_swept_by_its_own_age_and_alone(tmp_path: Path) -> None:
    entry = entry_in(tmp_path)
    place = put(entry, OLD)
    long_ago = time.time() - LEFTOVER_SECONDS - 10
    link = entry.part.with_suffix(".1.link")
    os.link(place, link)
    os.utime(link, (long_ago, long_ago))
    entry.part_record.write_text("{}")
    CacheSpace(tmp_path).sweep()
    assert link.exists()
    assert entry.part_record.exists()
