"""The room of a cache: what is removed, in which order, and what never is."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from contextlib import closing
from pathlib import Path, PurePosixPath

import pytest

from shared.errors import ResourceExhaustedError
from shared.files.cache import CacheEntry
from shared.files.client import ModelFiles
from shared.files.space import LEFTOVER_SECONDS, CacheSpace, state_file
from shared.model_ids import ModelId
from tests.support.providers import Provider
from tests.support.waiting import until
from tests.unit.shared.files.conftest import CONTENT, MODEL, NAME, QUICK, hangs

A, B, C = (ModelId(f"org/{name}") for name in "abc")
SIZE = 1000


def fill(root: Path, *models: ModelId) -> None:
    """Files of models, used one after the other."""
    for number, model_id in enumerate(models):
        folder = root / model_id.replace("/", "--")
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(SIZE))
        CacheEntry(root, model_id, PurePosixPath("weights")).place()
        record = state_file(root, PurePosixPath(folder.name) / "weights", ".json")
        record.parent.mkdir(exist_ok=True)
        record.write_text("{}")
        os.utime(folder, (number, number))


def left(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if not path.name.startswith(".")}


def test_the_least_recently_used_go_first_with_their_records(tmp_path: Path) -> None:
    fill(tmp_path, B, A, C)
    space = CacheSpace(tmp_path, 3 * SIZE)
    space.make_room(0)
    assert left(tmp_path) == {"org--a", "org--b", "org--c"}
    space.make_room(SIZE + 1)
    assert left(tmp_path) == {"org--c"}
    assert len(list((tmp_path / ".fetch").iterdir())) == 1
    space.use(A).close()
    assert left(tmp_path) == {"org--c"}, "a folder into which nothing was fetched is removed"


def test_a_use_makes_it_the_newest(tmp_path: Path) -> None:
    fill(tmp_path, A, B)
    space = CacheSpace(tmp_path, 2 * SIZE)
    space.use(A).close()
    space.make_room(SIZE)
    assert left(tmp_path) == {"org--a"}


def test_what_is_in_use_or_kept_stays_and_the_message_has_the_numbers(tmp_path: Path) -> None:
    fill(tmp_path, A, B, C)
    space = CacheSpace(tmp_path, 3 * SIZE, setting="X_CACHE_LIMIT_MB", kept=lambda: [C])
    with closing(space.use(A)):
        with pytest.raises(ResourceExhaustedError) as caught:
            space.make_room(2 * SIZE)
        assert left(tmp_path) == {"org--a", "org--b", "org--c"}, "in vain, so nothing is removed"
        assert caught.value.message == (
            "the model cache is full: 2000 bytes are needed, it has 3000 of the 3000 bytes that it "
            "may have (X_CACHE_LIMIT_MB), and to remove what no model uses is not enough"
        )
        assert caught.value.metadata == {"needed": "2000", "free": "0"}
        space.make_room(SIZE)
        assert left(tmp_path) == {"org--a", "org--c"}
    space.make_room(2 * SIZE)
    assert left(tmp_path) == {"org--c"}


def test_more_than_the_disk_has_is_told_with_the_bytes(tmp_path: Path) -> None:
    fill(tmp_path, A)
    with pytest.raises(ResourceExhaustedError, match=r"disk .* full: \d+ bytes are needed, "):
        CacheSpace(tmp_path, 1 << 62).make_room(1 << 61)
    assert left(tmp_path) == {"org--a"}


def test_conversions_count_and_go_apart_from_the_files(tmp_path: Path) -> None:
    root, converted = tmp_path / "files", tmp_path / "converted"
    fill(root, A)
    for name in ("old", "new"):
        folder = converted / "org--b" / name
        folder.mkdir(parents=True)
        (folder / "model.bin").write_bytes(bytes(SIZE))
        os.utime(folder, (10 + len(left(folder.parent)),) * 2)
    space = CacheSpace(root, 3 * SIZE, converted=converted)
    assert space.used_bytes() == 3 * SIZE
    space.make_room(2 * SIZE)
    assert left(root) == set()
    assert left(converted / "org--b") == {"new"}
    with closing(space.use(B)), pytest.raises(ResourceExhaustedError):
        space.make_room(3 * SIZE)


def test_dead_conversions_and_fetches_of_a_day_ago_are_swept(tmp_path: Path) -> None:
    converted = tmp_path / ".converted"
    space = CacheSpace(tmp_path, converted=converted)
    state = tmp_path / ".fetch"
    state.mkdir()
    model = converted / "org--a"
    old = time.time() - LEFTOVER_SECONDS - 10
    for names, at in ((("1.part", "1.part.json", "2.7.tmp"), old), (("3.part",), time.time())):
        for name in names:
            (state / name).write_text("{}")
            os.utime(state / name, (at, at))
    (model / ".part-1-x").mkdir(parents=True)
    (model / ".lock").touch()
    with (model / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a conversion runs
        space.sweep()
        assert {path.name for path in model.iterdir()} == {".lock", ".part-1-x"}
    assert {path.name for path in state.iterdir()} == {"3.part"}
    space.sweep()
    assert {path.name for path in model.iterdir()} == {".lock"}


async def test_a_fetch_makes_room_and_counts_those_under_way(
    source: Provider, tmp_path: Path
) -> None:
    fill(tmp_path, A, B)
    space = CacheSpace(tmp_path, len(CONTENT) + SIZE)
    source.files[f"{MODEL}/other"] = CONTENT
    source.usual = hangs
    async with ModelFiles(source.address, tmp_path, limits=QUICK, space=space) as files:
        fetch = asyncio.create_task(files.fetch(MODEL, NAME))
        await until(lambda: bool(list(tmp_path.glob(".fetch/*.part.json"))))
        assert left(tmp_path) - {"org--name"} == {"org--b"}
        with pytest.raises(ResourceExhaustedError, match="what no model uses"):
            await files.fetch(MODEL, "other")
        fetch.cancel()
        await asyncio.wait({fetch})
