"""Wishes are kept over restarts, and a damaged file does not keep the service down."""

from __future__ import annotations

from pathlib import Path

from model_mgmt_svc.desired import (
    Wish,
    WishStore,
)

ONE = Wish("org/one", "text-generation", {"dtype": "bfloat16", "päth": "'; DROP TABLE wishes"})
TWO = Wish("two", "feature-extraction")


async def test_wishes_are_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "wishes.db"
    async with WishStore(path) as store:
        await store.put(ONE)
        await store.put(TWO)
        await store.put(Wish("two", "text-generation"))
    async with WishStore(path) as store:
        assert await store.all() == [ONE, Wish("two", "text-generation")]
        assert await store.get("org/one") == ONE
        assert await store.get("other") is None


async def test_a_wish_is_taken_back_once(tmp_path: Path) -> None:
    async with WishStore(tmp_path / "wishes.db") as store:
        await store.put(ONE)
        assert await store.remove("org/one")
        assert not await store.remove("org/one")
        assert await store.all() == []


async def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "wishes.db"
    path.write_bytes(b"this is no database" * 100)
    async with WishStore(path) as store:
        await store.put(TWO)
        assert await store.all() == [TWO]
    assert (tmp_path / "wishes.broken").read_bytes().startswith(b"this is no database")
