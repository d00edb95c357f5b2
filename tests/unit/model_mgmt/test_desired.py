"""Desired models are kept over restarts, and a damaged file does not keep the service down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from model_mgmt_svc.desired import DesiredModel, DesiredModels
from model_mgmt_svc.life_options import LifeOptions
from model_mgmt_svc.old_record import OLD_RECORD
from shared.files.disk import write_json
from shared.model_ids import ModelId
from tests.support.waiting import until

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


async def test_options_of_life_and_sources_are_kept_beside_older_records(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    older = {"model_id": "org/one", "pipeline_type": "text-generation", "options": OPTIONS}
    path.write_text(json.dumps({"models": [older]}))
    life = LifeOptions(pin=True, keep_alive=0.0, aliases=(ModelId("chat"),))
    entry = {"model": "two", "pin": "true"}
    two = replace(TWO, life=life, asked=False, file_entry=entry)
    async with DesiredModels(path) as desired:
        assert desired.get(ONE.model_id) == ONE
        await desired.put(two)
    async with DesiredModels(path) as desired:
        assert desired.all() == [ONE, two]
        assert [model.sources for model in desired.all()] == [("api",), ("file",)]
    first, second = json.loads(path.read_text())["models"]
    assert first == older
    assert second["life"] == {"pin": True, "keep_alive": 0.0, "aliases": ["chat"]}


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


async def test_what_cannot_be_written_is_desired_told_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_mgmt_svc.desired.FIRST_RETRY_SECONDS", 0.01)
    folder = tmp_path / "folder"
    async with DesiredModels(folder / "desired.json") as desired:
        await desired.put(ONE)
        shutil.rmtree(folder)
        folder.write_bytes(b"in the way")
        await desired.put(TWO)
        assert desired.all() == [ONE, TWO]
        assert desired.unsaved == "File exists"
        assert await desired.remove(ONE.model_id)
        assert desired.unsaved
        folder.unlink()
        await until(lambda: not desired.unsaved)
    async with DesiredModels(folder / "desired.json") as desired:
        assert desired.all() == [TWO]


async def test_a_disk_that_hangs_holds_no_caller_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slow(path: Path, content: dict[str, object], *, durable: bool) -> None:
        go_on.wait(60)
        write_json(path, content, durable=durable)

    async with DesiredModels(tmp_path / "desired.json") as desired:
        monkeypatch.setattr("model_mgmt_svc.desired.SAVE_SECONDS", 0.05)
        monkeypatch.setattr("model_mgmt_svc.record.write_json", slow)
        await desired.put(ONE)
        assert desired.unsaved == "the disk does not answer within 0.05 s"
        assert desired.all() == [ONE]
        monkeypatch.undo()
        go_on.set()
        await until(lambda: not desired.unsaved)
    async with DesiredModels(tmp_path / "desired.json") as desired:
        assert desired.all() == [ONE]


async def test_a_folder_that_cannot_be_used_at_the_start_is_used_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_mgmt_svc.desired.FIRST_RETRY_SECONDS", 0.01)
    folder = tmp_path / "folder"
    folder.symlink_to(tmp_path / "elsewhere")
    async with DesiredModels(folder / "desired.json") as desired:
        assert desired.all() == []
        assert not desired.complete
        await desired.put(ONE)
        assert desired.unsaved
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "desired.json").write_bytes(b"of another life")
        await until(lambda: not desired.unsaved)
    assert names_in(folder) == ["desired.broken", "desired.json"]
    async with DesiredModels(folder / "desired.json") as desired:
        assert desired.all() == [ONE]


async def test_a_lost_record_is_rebuilt_from_what_replicas_hold(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    path.write_bytes(b"garbage")
    async with DesiredModels(path) as desired:
        assert not desired.complete
        await desired.put(OTHER_TWO)
        await desired.remove(ModelId("gone"))
        await desired.adopt([ONE, TWO, DesiredModel(ModelId("gone"), "tokenizer")])
        assert desired.all() == [ONE, OTHER_TWO]
    async with DesiredModels(path) as desired:  # a restart before all replicas were asked
        assert not desired.complete
        await desired.rebuilt()
    async with DesiredModels(path) as desired:
        assert desired.complete
        assert desired.all() == [ONE, OTHER_TWO]


async def test_what_is_valid_in_a_damaged_record_stays(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    bad = [{"model_id": 3}, None, [], {"model_id": "x", "pipeline_type": "y", "options": {"a": 1}}]
    good = {"model_id": "org/one", "pipeline_type": "text-generation", "options": OPTIONS}
    path.write_text(json.dumps({"models": [*bad, good]}))
    async with DesiredModels(path) as desired:
        assert desired.all() == [ONE]
        assert not desired.complete
    assert json.loads((tmp_path / "desired.broken").read_text())["models"][-1] == good


async def test_whatever_lies_in_the_place_of_the_record_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"

    def pipe() -> None:
        os.mkfifo(path)

    def huge() -> None:
        with path.open("wb") as file:
            file.truncate(1 << 40)

    kinds = [pipe, huge, path.mkdir, lambda: path.symlink_to("/dev/full")]
    kinds += [lambda: path.symlink_to(path)]
    for number, make in enumerate(kinds, 1):
        path.unlink(missing_ok=True)
        make()
        async with DesiredModels(path) as desired:
            assert desired.all() == []
            await desired.put(TWO)
        assert len(names_in(tmp_path)) == number + 1  # none replaces an earlier one
        async with DesiredModels(path) as desired:
            assert desired.all() == [TWO]


async def test_what_a_killed_write_leaves_is_removed(tmp_path: Path) -> None:
    (tmp_path / "desired.123.456.tmp").write_bytes(b'{"models": [')
    async with DesiredModels(tmp_path / "desired.json") as desired:
        assert desired.all() == []
    assert names_in(tmp_path) == ["desired.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"this is no record" * 100,
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"models": ' + b"[" * 100_000,
        b'{"models": [], "complete": 7}',
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


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "


@pytest.mark.parametrize(
    "table",
    [
        "",
        "CREATE TABLE others (name TEXT)",
        "CREATE TABLE wishes AS SELECT 7 AS model_id, NULL AS pipeline_type, x'00' AS options",
        (
            "CREATE TABLE wishes AS SELECT 'a' AS model_id, 'tokenizer' AS pipeline_type, "
            "replace(hex(zeroblob(50000)), '0', '[') AS options"
        ),
        (
            "CREATE TABLE wishes AS SELECT cast(x'ff' AS TEXT) AS model_id, 'a' AS pipeline_type, "
            "'{}' AS options"
        ),
        (
            f"CREATE VIEW wishes AS {ENDLESS} SELECT i AS model_id, i AS pipeline_type, "
            "hex(zeroblob(1000)) AS options FROM n"
        ),
        (
            f"CREATE VIEW wishes AS {ENDLESS} SELECT i AS model_id, 'a' AS pipeline_type, "
            "'{}' AS options FROM n WHERE i < 0"
        ),
    ],
)
async def test_a_damaged_record_of_an_earlier_version_is_put_aside(
    tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_mgmt_svc.old_record.READ_SECONDS", 0.2)
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


async def test_a_locked_record_of_an_earlier_version_stays_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_mgmt_svc.old_record.READ_SECONDS", 0.1)
    write_old_record(tmp_path / OLD_RECORD)
    path = tmp_path / "desired.json"
    with contextlib.closing(sqlite3.connect(tmp_path / OLD_RECORD)) as other:
        other.execute("BEGIN EXCLUSIVE")
        async with DesiredModels(path) as desired:
            assert desired.all() == []
            assert not desired.complete
    assert (tmp_path / OLD_RECORD).exists()


async def test_ids_in_a_file_edited_by_hand_are_made_canonical(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    async with DesiredModels(path) as desired:
        await desired.put(ONE)
    path.write_text(path.read_text().replace("org/one", "models/org/one/model.safetensors"))
    async with DesiredModels(path) as desired:
        assert desired.all() == [ONE]
        assert desired.get(ONE.model_id) == ONE
