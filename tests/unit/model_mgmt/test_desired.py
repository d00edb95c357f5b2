"""Desired models are kept over restarts, and a damaged file does not keep the service down."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest

from model_mgmt_svc.desired import OLD_RECORD, DesiredModel, DesiredModels
from shared.model_ids import ModelId

OPTIONS = {"dtype": "bfloat16", "päth": "'; DROP TABLE wishes"}
ONE = DesiredModel(ModelId("org/one"), "text-generation", OPTIONS)
TWO = DesiredModel(ModelId("two"), "feature-extraction")
OTHER_TWO = DesiredModel(ModelId("two"), "text-generation")


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


async def test_they_are_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "desired.json"
    async with DesiredModels(path) as desired:
        await desired.put(ONE)
        await desired.put(TWO)
        await desired.put(OTHER_TWO)
    async with DesiredModels(path) as desired:
        assert desired.all() == [ONE, OTHER_TWO]
        assert desired.get(ModelId("org/one")) == ONE
        assert desired.get(ModelId("other")) is None


async def test_one_is_removed_once(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    async with DesiredModels(path) as desired:
        await desired.put(ONE)
        assert await desired.remove(ONE.model_id)
        assert not await desired.remove(ONE.model_id)
        assert desired.all() == []
    async with DesiredModels(path) as desired:
        assert desired.all() == []


async def test_changes_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    models = [DesiredModel(ModelId(f"model{number:02}"), "tokenizer") for number in range(20)]
    async with DesiredModels(path) as desired:
        await asyncio.gather(*(desired.put(model) for model in models))
        assert desired.all() == models
    async with DesiredModels(path) as desired:
        assert desired.all() == models
    assert names_in(tmp_path) == ["desired.json"]


async def test_a_change_whose_caller_goes_away_is_on_disk_or_not_made(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    async with DesiredModels(path) as desired:
        call = asyncio.create_task(desired.put(ONE))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait((call,))
    async with DesiredModels(path) as again:
        assert again.all() == desired.all() == [ONE]


async def test_what_cannot_be_written_is_not_desired(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    async with DesiredModels(folder / "desired.json") as desired:
        await desired.put(ONE)
        for each in folder.iterdir():
            each.unlink()
        folder.rmdir()
        with pytest.raises(OSError, match="No such file"):
            await desired.put(TWO)
        assert desired.all() == [ONE]


@pytest.mark.parametrize(
    "content",
    [
        b"this is no record" * 100,
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"models": {}}',
        b'{"models": [{"model_id": "a"}]}',
        b'{"models": [{"model_id": "../a", "pipeline_type": "tokenizer"}]}',
    ],
)
async def test_a_damaged_file_is_put_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "desired.json"
    path.write_bytes(content)
    async with DesiredModels(path) as desired:
        assert desired.all() == []
        await desired.put(TWO)
        assert desired.all() == [TWO]
    assert (tmp_path / "desired.broken").read_bytes() == content
    async with DesiredModels(path) as desired:
        assert desired.all() == [TWO]


def write_old_record(path: Path) -> None:
    """The file of an earlier version, as it wrote it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(
        "CREATE TABLE wishes (model_id TEXT PRIMARY KEY, pipeline_type TEXT NOT NULL,"
        " options TEXT NOT NULL) WITHOUT ROWID"
    )
    for model in (ONE, TWO):
        row = model.model_id, model.pipeline_type, json.dumps(dict(model.options))
        connection.execute("INSERT INTO wishes VALUES (?, ?, ?)", row)
    connection.close()


async def test_the_record_of_an_earlier_version_is_imported_once(tmp_path: Path) -> None:
    write_old_record(tmp_path / OLD_RECORD)
    path = tmp_path / "desired.json"
    async with DesiredModels(path) as desired:
        assert desired.all() == [ONE, TWO]
        await desired.remove(ONE.model_id)
    assert names_in(tmp_path) == ["desired.json", "wishes.imported"]
    async with DesiredModels(path) as desired:
        assert desired.all() == [TWO]


async def test_a_crash_before_the_first_change_loses_no_import(tmp_path: Path) -> None:
    write_old_record(tmp_path / OLD_RECORD)
    path = tmp_path / "desired.json"
    async with DesiredModels(path):
        pass
    async with DesiredModels(path) as desired:
        assert desired.all() == [ONE, TWO]


@pytest.mark.parametrize("table", ["", "CREATE TABLE others (name TEXT)"])
async def test_a_damaged_record_of_an_earlier_version_is_put_aside(
    tmp_path: Path, table: str
) -> None:
    old = tmp_path / OLD_RECORD
    if table:
        connection = sqlite3.connect(old)
        connection.execute(table)
        connection.close()
    else:
        old.write_bytes(b"this is no database" * 100)
    async with DesiredModels(tmp_path / "desired.json") as desired:
        assert desired.all() == []
    assert not old.exists()
    assert (tmp_path / "wishes.broken").exists()


async def test_ids_in_a_file_edited_by_hand_are_made_canonical(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    async with DesiredModels(path) as desired:
        await desired.put(ONE)
    path.write_text(path.read_text().replace("org/one", "models/org/one/model.safetensors"))
    async with DesiredModels(path) as desired:
        assert desired.all() == [ONE]
        assert desired.get(ONE.model_id) == ONE
