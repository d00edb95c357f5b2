"""What of a model's folder the libraries see."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from shared.errors import InvalidModelError
from shared.files.snapshot import OPTIONAL_FILES
from text_svc.formats.cleaned import cleaned, cleaned_folder

PASSWD = "/etc/passwd"
# Parameters of tokenizers that are names of files, besides those of `vocab_files_names`.
FILES = ("vocab_file", "vocab", "merges", "merges_file", "spm_file", "tokenizer_file")


def tokenizer_classes() -> Iterator[type[PreTrainedTokenizerBase]]:
    for package in pkgutil.iter_modules(transformers.models.__path__):
        folder = importlib.import_module(f"transformers.models.{package.name}")
        for module in pkgutil.iter_modules(getattr(folder, "__path__", [])):
            # This one needs a package that is not installed here.
            if module.name.startswith("tokenization") and "pop2piano" not in module.name:
                made = importlib.import_module(f"{folder.__name__}.{module.name}")
                for kind in vars(made).values():
                    if isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerBase):
                        yield kind


def test_no_argument_of_any_tokenizer_that_is_a_file_is_left() -> None:
    left, seen = set(), set()
    for kind in tokenizer_classes():
        parameters = set(inspect.signature(kind.__init__).parameters)
        named = {name for name in parameters if name in FILES or name.endswith(("_file", "_spm"))}
        seen |= named | set(kind.vocab_files_names or {})
    for value in (PASSWD, "passwd", 3, [PASSWD], {"a": PASSWD}):
        left |= cleaned(dict.fromkeys(seen, value)).keys()
    assert len(seen) > 15, "the walk finds them"
    assert not left


def test_all_vocabularies_that_a_tokenizer_reads_are_fetched_and_left(tmp_path: Path) -> None:
    names = {name for kind in tokenizer_classes() for name in kind.vocab_files_names.values()}
    assert len(names) > 20, "the walk finds them"
    assert names <= set(OPTIONAL_FILES)
    for name in OPTIONAL_FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with cleaned_folder(tmp_path, tmp_path / "scratch") as folder:
        assert all((folder / name).exists() for name in names)


def test_a_path_is_left_out_whatever_its_name() -> None:
    paths = (PASSWD, "../other/vocab.txt", "~/x", "https://host/x", "file:///x", "C:\\x", "..")
    for path in paths:
        arguments = {"anything": path, "deep": {"list": [path], "object": [{"x": path}]}}
        assert cleaned(arguments) == {"deep": {"list": [], "object": [{}]}}


def test_a_file_where_the_process_runs_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings").write_text("")
    monkeypatch.chdir(tmp_path)
    assert cleaned({"anything": "settings", "other": "setting"}) == {"other": "setting"}


@pytest.mark.parametrize(
    "name",
    [
        *("auto_map", "init_inputs", "name_or_path", "_name_or_path", "attn_implementation"),
        *("audio_tokenizer_name_or_path", "sudachi_config_path", "font", "repo_path"),
        *("mecab_kwargs", "class_info_file", "fast_tokenizer_files"),
    ],
)
def test_names_of_code_and_of_files(name: str) -> None:
    assert cleaned({name: "plain", "deep": {name: ["plain"]}}) == {"deep": {}}


def test_what_only_looks_like_a_path_stays() -> None:
    content: dict[str, Any] = {
        "bos_token": "</s>",
        "mask_token": {"content": "<a/b>", "lstrip": True},
        "added_tokens_decoder": {"5": {"content": "/"}},
        "additional_special_tokens": ["//", "~"],
        "extra_special_tokens": {"image_token": "<//>"},
        "chat_template": "{# a/b #}",
        "stop_strings": ["</answer>"],
        "id2label": {"0": "/m/09x0r", "1": "N/A"},
        "drop_path": 0.1,
        "encoder_hash_byte_group_vocab": 500002,
        "use_font": True,
        "tokenizer_class": "BertTokenizer",
        "model_max_length": 1e30,
    }
    assert cleaned(content) == content


def test_no_number_of_any_configuration_is_left_out() -> None:
    for name, kind in CONFIG_MAPPING.items():
        try:
            own = json.loads(json.dumps(kind().to_dict(), default=str))
        except Exception:  # noqa: BLE001  # some need other packages or arguments
            continue
        for key, value in own.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert key in cleaned(own), f"{key} of {name}"


def test_the_folder_has_clean_json_and_links(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "1_Pooling/config.json", "special_tokens_map.json"):
        (source / name).write_text(json.dumps({"a": 1, "vocab_file": PASSWD}))
    for name in ("model.safetensors", "tokenizer.json", "vocab.txt", "code.py", "x.bin"):
        (source / name).write_text(name)
    with cleaned_folder(source, tmp_path / "scratch") as folder:
        for name in ("config.json", "1_Pooling/config.json", "special_tokens_map.json"):
            assert json.loads((folder / name).read_text()) == {"a": 1}
            assert not (folder / name).is_symlink()
        assert (folder / "model.safetensors").resolve() == source / "model.safetensors"
        assert (folder / "vocab.txt").read_text() == "vocab.txt"
        assert not list(folder.glob("*.py")) + list(folder.glob("*.bin"))
    assert not folder.exists()
    assert (source / "vocab.txt").read_text() == "vocab.txt"


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "vocab.txt").symlink_to(PASSWD)
    with (
        pytest.raises(InvalidModelError, match=r"'vocab\.txt' leads out"),
        cleaned_folder(source, tmp_path / "scratch"),
    ):
        pass


def test_links_within_the_folder_are_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "real.txt").write_text("own")
    (source / "vocab.txt").symlink_to("real.txt")
    with cleaned_folder(source, tmp_path / "scratch") as folder:
        assert (folder / "vocab.txt").read_text() == "own"


@pytest.mark.parametrize(
    ("names", "weights", "seen"),
    [
        (["a/small.safetensors"], "a/small.safetensors", ["model.safetensors"]),
        (
            ["a/1.safetensors", "a/x.safetensors.index.json"],
            "a/x.safetensors.index.json",
            ["1.safetensors", "model.safetensors.index.json"],
        ),
        (
            ["2_Dense/model.safetensors", "small.safetensors"],
            "small.safetensors",
            ["2_Dense/model.safetensors", "model.safetensors"],
        ),
    ],
)
def test_weights_in_another_file_have_the_usual_name(
    tmp_path: Path, names: list[str], weights: str, seen: list[str]
) -> None:
    for name in ("config.json", *names):
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_text("{}")
    with cleaned_folder(tmp_path / "model", tmp_path / "scratch", weights) as folder:
        files = [each.relative_to(folder).as_posix() for each in folder.rglob("*.*")]
        assert sorted(files) == sorted(["config.json", *seen])
