"""A converted model that is damaged counts as none, so that it is converted anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from text_svc.convert import __main__ as converter
from text_svc.convert.spec import ConversionSpec
from text_svc.formats.manifest import MANIFEST, MODEL, Manifest

WRITTEN = Manifest(context=512, cache_width=64, end_tokens=[2], weight_bytes=7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "converted"
    folder.mkdir()
    (folder / MODEL).write_bytes(b"weights")
    WRITTEN.write(folder)
    return folder


def test_a_whole_folder_is_read(folder: Path) -> None:
    manifest = Manifest.read(folder)
    assert manifest
    assert manifest == WRITTEN.model_copy(update={"files": {MODEL: 7}})
    assert Manifest.read(folder / "other") is None


def test_one_of_an_earlier_version_has_no_sizes(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"context": 512, "weight_bytes": 7}')
    (folder / MODEL).write_bytes(b"")
    assert Manifest.read(folder) == Manifest(context=512, weight_bytes=7)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder_in_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def nested(path: Path) -> None:
    path.write_bytes(b"[" * 500_000)


def of_another_kind(path: Path) -> None:
    path.write_bytes(b'{"context": "many", "weight_bytes": -1}')


@pytest.mark.parametrize("damage", [truncate, pipe, folder_in_place, huge, nested, of_another_kind])
@pytest.mark.parametrize("name", [MANIFEST, MODEL])
def test_damage_makes_it_none(
    folder: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(folder / name)
    assert Manifest.read(folder) is None
    (record,) = caplog.records
    assert record.file == name  # type: ignore[attr-defined]


@pytest.mark.parametrize("left", ["a damaged folder", "a file"])
def test_it_is_converted_in_place_of_what_is_left(
    folder: Path, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if left == "a file":
        target = folder / "file"
        target.write_bytes(b"")
    else:
        target = folder
        truncate(folder / MANIFEST)

    def make(spec: ConversionSpec, part: Path) -> Manifest:
        (part / MODEL).write_bytes(b"anew")
        return WRITTEN

    monkeypatch.setattr(converter, "_make", make)
    spec = ConversionSpec.model_construct(target=target)
    converter.convert(spec)
    manifest = Manifest.read(target)
    assert manifest
    assert manifest.files == {MODEL: 4}
