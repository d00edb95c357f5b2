"""Records on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.files.disk import read_record, write_json


@pytest.mark.parametrize("durable", [False, True])
def test_a_record_that_cannot_be_written_leaves_the_old_one_alone(
    tmp_path: Path, durable: bool
) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"a": 1}, durable=durable)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()}, durable=durable)
    assert [each.name for each in tmp_path.iterdir()] == ["record.json"]
    assert path.read_text() == '{"a": 1}'


def test_a_record_that_is_no_file_counts_as_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nested").write_bytes(b"[" * 500_000)
    for name in ("pipe", "folder", "loop", "nested", "missing"):
        assert read_record(tmp_path / name) is None
