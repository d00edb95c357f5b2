"""The file of desired models is read as a whole, or refused with a line and the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_mgmt_svc.life_options import DEFAULT_LIFE, LifeOptions
from model_mgmt_svc.models_file import (
    MAX_BYTES,
    ModelsFileError,
    parse_models_file,
    read_models_file,
)
from model_mgmt_svc.resolve import Asked
from shared.model_ids import ModelId

GOOD = b"""
# What every replica should have.
[[models]]
id = "models/org/name/model.safetensors"
type = "chat"
aliases = ["chat", "org/alias"]
pin = true
keep_alive = 2.5
priority = -3
torch_dtype = "torch.bfloat16"
threads = 2

[[models]]
id = "face"
architecture = "whisper"
evict = "forget"
"""


def test_models_have_types_and_options() -> None:
    first, second = parse_models_file(GOOD)
    assert first.model_id == "org/name"
    assert first.asked == Asked("chat")
    assert first.options == {"dtype": "bfloat16", "threads": "2"}
    assert first.change.of(DEFAULT_LIFE) == LifeOptions(
        True, 2.5, "lru", -3, (ModelId("chat"), ModelId("org/alias"))
    )
    assert (second.model_id, second.asked, second.line) == ("face", Asked("", "whisper"), 13)
    assert parse_models_file(b"") == []
    array = b'models = [{id = "one"}, {id = "two", pin = true}]'
    assert [each.model_id for each in parse_models_file(array)] == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[[models]]\nid = "a"\npin true', "line 3: Expected '='"),
        (b'[[models]]\nid = "a', "line 2: Unterminated string"),
        (b'[[models]]\nid = "a"\n# \xff', "line 3: it is not UTF-8"),
        (b'\n[[model]]\nid = "a"', "line 2: 'model' is not known; it must be models"),
        (b'[models]\nid = "a"', r"models must be tables, each under a line \[\[models\]\]"),
        (b'[[models]]\nid = "a"\n[[models]]\ntype = "chat"', "line 3: id is empty"),
        (b'[[models]]\n\nid = "../a"', "line 3: id '../a' is not"),
        (b'[[models]]\nid = "a"\ntype = "magic"', "line 3: pipeline type 'magic'"),
        (b'[[models]]\nid = "a"\n[[models]]\nid = "b"\npin = 1', "line 5: option pin must be one"),
        (b'[[models]]\nid = "a"\n"evict" = "x"', "line 3: option evict must be one of lru"),
        (b'[[models]]\nid = "a"\naliases = [1]', "line 3: aliases must be a text"),
        (b'[[models]]\nid = "a"\nx = {y = 1}', "line 3: x must be a text"),
        (b'[[models]]\nid = "a"\ntrust_remote_code = true', "line 3: option trust_remote_code"),
        (b'[[models]]\nid = "a"\naliases = "a"', "line 3: option aliases has the model's own id"),
        (
            b'[[models]]\nid = "a"\ntype = "face-mesh"\nkeep_alive = 5',
            "line 4: option keep_alive must be -1 for a model of vision_svc",
        ),
        (
            b'[[models]]\nid = "a"\n[[models]]\nid = "b"\naliases = ["a"]',
            "line 3: the name 'a' is that of the model in line 1, too",
        ),
        (b'[[models]]\nid = "a"\npriority = ' + b"1" * 5000, "a number has too many digits"),
        (
            b'[[models]]\nid = "a"\npriority = 0x' + b"f" * 5000,
            "line 3: priority has too many digits",
        ),
        (b'[[models]]\nid = "a"\nkeep_alive = nan', "line 3: option keep_alive must be -1"),
        (b'[[models]]\nid = "a"\nkeep_alive = 1e400', "line 3: option keep_alive must be -1"),
        (b"a = " + b"[" * 100_000, "it is nested too deeply"),
        (b'[[models]]\nid = "a"\n' * 1001, "it has 1001 models; the limit is 1000"),
    ],
)
def test_what_is_not_valid_is_refused_with_its_line(content: bytes, said: str) -> None:
    with pytest.raises(ModelsFileError, match=f"^{said}"):
        parse_models_file(content)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    with pytest.raises(ModelsFileError, match="cannot be read: No such file"):
        read_models_file(path)
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ModelsFileError, match="more than 1048576 bytes"):
        read_models_file(path)
