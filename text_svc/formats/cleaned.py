"""A model's folder as the model libraries may see it: without anything that leads out of it.

transformers takes what a model's JSON files say as arguments of its classes, and many of these are
names of files: `"vocab_file": "/etc/passwd"` in tokenizer_config.json makes a tokenizer of the
lines of that file. So a library is never given the folder of the files that came, but one that is
made here: JSON that transformers reads without paths, addresses and code, and links to the other
files. The libraries then find each file by its usual name in this folder.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from shared.errors import InvalidModelError, InvalidPathError
from shared.files.snapshot import (
    CONFIG,
    WEIGHTS,
    WEIGHTS_INDEX,
    WEIGHTS_INDEX_SUFFIX,
    WEIGHTS_SUFFIX,
)
from shared.model_ids import check_file_path, resolve_inside
from text_svc.formats.json_files import read_json_object

# What transformers reads as arguments of its classes.
CLEANED = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
)
# Files that libraries read as data. Others, such as pickles and code, are not there for them.
_DATA = (
    *(".json", ".safetensors", ".jinja"),
    *(".tflite", ".litertlm"),
    *(".txt", ".model", ".spm", ".codes", ".tokenizer"),  # vocabularies
)
# Files in a folder and below it: weights of at most 1,000 shards, and the rest.
MAX_FILES = 2000

# Arguments that are files, folders or addresses by their names, whatever their values: an integer
# is a file descriptor for `open`. `vocab` and `merges` are names of files or what is in them.
_FILE_ARGUMENT = re.compile(
    r"(^|_)(file|files|path|paths|dir|dirs|folder|folders|root|spm|vocab|merges|font|url|urls|uri"
    r"|repo|repo_id|repository|dataset)$"
)
_OPENED = re.compile(r"(^|_)(file|path)s?$")
# Arguments that name code, or that are arguments of further libraries, with files among them.
_DROPPED = {
    *("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code", "init_inputs"),
    *("code_revision", "subfolder", "proxies", "cache_dir", "model_file", "model_proto"),
    *("mecab_kwargs", "sudachi_kwargs", "jumanpp_kwargs", "use_kernels", "kernel_config"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
    *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
}
# Texts that are shown, tokenized or matched, and never opened; they may look like paths.
_TEXTS = re.compile(
    r"(_token|_tokens|^added_tokens_decoder|^additional_special_tokens|^extra_special_tokens"
    r"|^chat_template|^id2label|^label2id|^never_split|^tags_dict|^lang2id|^id2lang|^stop_strings)$"
)


def link_files(folder: Path, links: Path, weights: str = "") -> None:
    """Makes a folder with links to the files of a model that libraries read as they are.

    It reads names only, so it comes before a process gives up the right to make links.

    Args:
        folder: of the model.
        links: the folder to make.
        weights: the file with the weights, or their index, that gets the usual name there; empty
            if it has it.

    Raises:
        InvalidModelError: there are over MAX_FILES, or a file is a link that leads out of `folder`.
    """
    links.mkdir(parents=True)
    files = data_files(folder)
    if weights:
        files = _with_usual_names(files, weights)
    for name, path in files.items():
        target = links / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.name not in CLEANED:
            target.symlink_to(path)


def _with_usual_names(files: dict[str, Path], weights: str) -> dict[str, Path]:
    """The files of a folder with `weights`, and the shards beside an index, under usual names.

    These are in the folder of config.json, or of the first module that has one.
    """
    configs = sorted(
        (name.count("/"), name) for name in files if PurePosixPath(name).name == CONFIG
    )
    main = PurePosixPath(configs[0][1]).parent if configs else PurePosixPath()
    is_index = weights.endswith(WEIGHTS_INDEX_SUFFIX)
    beside = PurePosixPath(weights).parent
    renamed = {}
    for name, path in files.items():
        place = PurePosixPath(name)
        if name == weights:
            place = main / (WEIGHTS_INDEX if is_index else WEIGHTS)
        elif is_index and place.suffix == WEIGHTS_SUFFIX and place.is_relative_to(beside):
            place = main / place.relative_to(beside)
        renamed[str(place)] = path
    return renamed


@contextmanager
def cleaned_folder(folder: Path, scratch: Path, weights: str = "") -> Iterator[Path]:
    """The folder for the libraries. It is removed at the end, when everything has been read.

    Args:
        folder: of the model.
        scratch: a folder in which it is made, unless `link_files` has made `links_in(scratch)`.
        weights: as in `link_files`.

    Raises:
        InvalidModelError: a JSON file is broken, or as `link_files`.
    """
    links = links_in(scratch)
    try:
        if not links.exists():
            link_files(folder, links, weights)
        for name, path in data_files(folder).items():
            if path.name in CLEANED:
                (links / name).write_text(json.dumps(cleaned(read_json_object(path))))
        yield links
    finally:
        shutil.rmtree(links, ignore_errors=True)


def links_in(scratch: Path) -> Path:
    """The folder for the libraries in a process's scratch folder."""
    return scratch / "model"


def cleaned(value: Any) -> Any:
    """A value of a JSON file without what is, or could be, a path, an address or code."""
    if isinstance(value, list):
        return [cleaned(each) for each in value if not _is_place(each)]
    if not isinstance(value, dict):
        return value
    return {
        key: each if _TEXTS.search(key) else cleaned(each)
        for key, each in value.items()
        if _TEXTS.search(key) or not (_names_a_file(key, each) or _is_place(each))
    }


def _names_a_file(key: str, value: Any) -> bool:
    if key in _DROPPED:
        return True
    if isinstance(value, bool):
        return bool(_OPENED.search(key))  # the number of an open file to Python
    if isinstance(value, float) or (isinstance(value, int) and key.endswith("_vocab")):
        return False  # the size or the probability of something
    return bool(_FILE_ARGUMENT.search(key))


def _is_place(value: Any) -> bool:
    """Whether a text is a path, an address, or the name of a file where this process runs."""
    if not isinstance(value, str):
        return False
    return (
        "/" in value
        or "\\" in value
        or value.startswith("~")
        or value in (".", "..")
        or ("\0" not in value and len(value) < 64 and Path(value).is_file())
    )


def data_files(folder: Path) -> dict[str, Path]:
    """The files that libraries may read, in a folder and those below it: name there, real place.

    Raises:
        InvalidModelError: there are over MAX_FILES, or one is a link that leads out of the folder.
    """
    files: dict[str, Path] = {}
    for path in folder.rglob("*"):
        if path.suffix not in _DATA or not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        try:
            files[name] = resolve_inside(folder, check_file_path(name))
        except InvalidPathError:
            raise InvalidModelError(f"{name[:80]!r} leads out of the model's folder") from None
        if len(files) > MAX_FILES:
            raise InvalidModelError(f"the model has over {MAX_FILES} files, which is the limit")
    return files
