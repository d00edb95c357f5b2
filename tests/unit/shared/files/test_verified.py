"""Hashes that are remembered: not of a file that has changed, however it looks."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.files import verified
from shared.files.client import ModelFiles
from shared.files.verified import VerifiedFiles
from tests.support.providers import Provider
from tests.unit.shared.files.conftest import CONTENT, MODEL, NAME

LONG_AGO = time.time_ns() - 3600 * 10**9 + 1


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that have been read."""
    names: list[str] = []
    digest = hashlib.file_digest

    def noted(file, name):  # type: ignore[no-untyped-def]
        names.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    return names


def old_file(folder: Path, content: bytes = CONTENT) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    return path


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_an_unchanged_file_is_read_once(tmp_path: Path, reads: list[str]) -> None:
    path, files = old_file(tmp_path), VerifiedFiles()
    assert [files.hash(path) for _ in range(3)] == [hash_of(CONTENT)] * 3
    assert reads == ["file"]


@contextmanager
def same_times(path: Path) -> Iterator[None]:
    """Hides what is written, as far as a program can."""
    before = path.stat()
    yield
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_changed_file_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    path, files = old_file(tmp_path), VerifiedFiles()
    files.hash(path)
    changed = CONTENT[:-1] + b"\0"
    with same_times(path), path.open("r+b") as file:
        file.write(changed)
    assert files.hash(path) == hash_of(changed)
    other = old_file(tmp_path, CONTENT)  # in its place, with the same size and time
    assert files.hash(other) == hash_of(CONTENT)
    path.rename(tmp_path / "away")
    replacement = old_file(tmp_path, changed)
    assert files.hash(replacement) == hash_of(changed)
    assert reads == ["file"] * 4


def test_a_file_that_may_change_in_the_same_instant_is_not_remembered(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, files = old_file(tmp_path), VerifiedFiles()
    now = time.time_ns()
    os.utime(path, ns=(now, now))
    monkeypatch.setattr(verified, "CLOCK_SECONDS", 60.0)
    files.hash(path)
    files.hash(path)
    # Whole seconds: the file system may keep no others.
    whole = now // 10**9 * 10**9
    os.utime(path, ns=(whole, whole))
    monkeypatch.setattr(verified, "CLOCK_SECONDS", 0.0)
    monkeypatch.setattr(verified, "COARSE_CLOCK_SECONDS", 60.0)
    files.hash(path)
    files.hash(path)
    assert reads == ["file"] * 4


def test_names_of_the_owner_are_no_change(tmp_path: Path, reads: list[str]) -> None:
    path, files = old_file(tmp_path), VerifiedFiles()
    files.hash(path)
    renamed = path.rename(tmp_path / "renamed")
    files.renamed(renamed)
    files.hash(renamed)
    assert reads == ["file"]
    with renamed.open("r+b") as file:
        file.write(b"x")
    files.renamed(renamed)  # which has been written to besides
    files.hash(renamed)
    assert reads == ["file", "renamed"]


def test_the_oldest_are_forgotten(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "MAX_FILES", 1)
    files = VerifiedFiles()
    first = old_file(tmp_path).rename(tmp_path / "first")
    second = old_file(tmp_path).rename(tmp_path / "second")
    for path in (first, second, second, first):
        files.hash(path)
    assert reads == ["first", "second", "first"]


async def test_a_load_reads_a_file_once_and_finds_later_damage(
    files: ModelFiles, source: Provider, reads: list[str]
) -> None:
    path = await files.fetch(MODEL, NAME)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    reads.clear()
    for _ in range(3):
        await files.fetch(MODEL, NAME)
    assert reads == [path.name]
    path.chmod(0o644)  # nobody may write to it
    with same_times(path), path.open("r+b") as file:
        file.write(b"damaged")
    assert (await files.fetch(MODEL, NAME)).read_bytes() == CONTENT
