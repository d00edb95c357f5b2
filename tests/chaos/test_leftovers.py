"""What is in use is nothing left over."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.chaos import leftovers
from text_svc.processes.scratch import child_scratch, scratch_folder


def test_the_folder_of_a_text_svc_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder() as folder:
        child_scratch(folder).mkdir()
        assert list(leftovers.in_scratch(tmp_path)) == []
        (tmp_path / "forgotten").touch()
        assert list(leftovers.in_scratch(tmp_path)) == ["file forgotten"]
