"""The folder for temporary files: nobody's while its service lives, and gone when that is dead."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.stack import ROOT
from text_svc.processes.scratch import PREFIX, child_scratch, scratch_folder

_SERVICE = """
import time
from text_svc.processes.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "of-a-model").mkdir()
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_what_a_killed_service_left_goes_with_the_next_start(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", _SERVICE],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        try:
            with scratch_folder() as folder:
                assert (left / "of-a-model").is_dir()  # its service lives
                assert {left, folder} == set(tmp_path.iterdir())
        finally:
            other.send_signal(signal.SIGKILL)
    assert left.is_dir()
    with scratch_folder() as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with scratch_folder() as first, scratch_folder() as second:
        assert set(tmp_path.iterdir()) == {first, second}


def test_what_is_not_a_folder_of_a_service_stays(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "text-svc-of-an-older-version").mkdir()
    (tmp_path / f"{PREFIX}file").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "other")
    before = set(tmp_path.iterdir())
    with scratch_folder() as folder:
        assert child_scratch(folder).parent == folder
    assert set(tmp_path.iterdir()) == before
