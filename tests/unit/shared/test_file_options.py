"""The options that every pipeline type has."""

from __future__ import annotations

import pytest

from shared.errors import InvalidArgumentError, InvalidPathError
from shared.file_options import FileOptions
from shared.model_ids import ModelId


def test_both_are_read_and_others_left_out() -> None:
    options = FileOptions.of({"file": "a/b.tflite", "revision": "v2", "engine": "auto"})
    assert options == FileOptions("a/b.tflite", "v2")
    assert options.files_of(ModelId("org/name")) == "org/name@v2"
    assert FileOptions.of({}).files_of(ModelId("org/name")) == "org/name"


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../b", "a//b", "C:\\x", "a\nb", "x" * 2000, ".", "a/"]
)
def test_a_path_that_leads_out_is_refused(path: str) -> None:
    with pytest.raises(InvalidPathError) as caught:
        FileOptions.of({"file": path})
    assert caught.value.field == "options[file]"


def test_a_hostile_revision_is_refused() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        FileOptions.of({"revision": "../../x"})
    assert caught.value.field == "options[revision]"
