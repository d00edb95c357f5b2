"""The share of the weights that a process has read, from what the kernel says of its pages."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from text_svc.processes.load_share import LoadShare

MIB = 1 << 20


def weights(place: Path, size: int) -> Path:
    place.write_bytes(os.urandom(size))
    return place


def read(file: mmap.mmap, size: int) -> None:
    for offset in range(0, size, mmap.PAGESIZE):
        file[offset]


def test_pages_that_were_read_count(tmp_path: Path) -> None:
    path = weights(tmp_path / "model.safetensors", 16 * MIB)
    share = LoadShare(tmp_path)
    assert share.of(os.getpid()) is None  # not mapped: nothing is known
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        read(mapped, 4 * MIB)
        first = share.of(os.getpid())
        assert first is not None
        assert 0.25 <= first <= 0.5  # the kernel maps some pages around those that are read
        read(mapped, 16 * MIB)
        assert share.of(os.getpid()) == 1.0
    assert share.of(os.getpid()) == 1.0  # what was closed again stays read


def test_parts_add_up_and_links_are_followed(tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    parts = [weights(tmp_path / f"{number}.safetensors", MIB) for number in (1, 2)]
    for part in parts:
        (links / part.name).symlink_to(part)
    (links / "tokenizer.json").write_bytes(bytes(MIB))
    share = LoadShare(links)
    for part, expected in zip(parts, (0.5, 1.0), strict=True):
        with part.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as each:
            read(each, MIB)
            assert share.of(os.getpid()) == expected


def test_one_file_among_others(tmp_path: Path) -> None:
    weights(tmp_path / "other.tflite", MIB)
    path = weights(tmp_path / "model.tflite", MIB)
    share = LoadShare(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        read(mapped, MIB)
        assert share.of(os.getpid()) == 1.0


def test_a_process_that_is_gone_and_a_folder_without_weights(tmp_path: Path) -> None:
    assert LoadShare(tmp_path).of(os.getpid()) is None
    weights(tmp_path / "model.safetensors", 10)
    assert LoadShare(tmp_path).of(2**22 + 1) is None
