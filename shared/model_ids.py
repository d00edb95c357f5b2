"""Model ids, revisions and file paths from the wire, validated before they are used."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from pathlib import Path, PurePosixPath
from typing import NewType

from shared.errors import (
    InvalidArgumentError,
    InvalidModelIdError,
    InvalidPathError,
    MissingFieldError,
)

# "org/name" or "name". Only `parse_model_id` makes these, once, where a request comes in. What
# fetches and keeps files also takes "org/name@revision", from `at_revision`, and "#file" after it,
# from `with_file`.
ModelId = NewType("ModelId", str)

# huggingface_hub.utils.validate_repo_id limits the name; here this also limits the organisation.
MAX_ID_PART_CHARS = 96
MAX_PATH_CHARS = 1024
# Of a branch, a tag or a commit; the name of a commit has 40 or 64.
MAX_REVISION_CHARS = 100
# The limit of common file systems.
MAX_NAME_BYTES = 255

_PART = re.compile(rf"(?=.{{1,{MAX_ID_PART_CHARS}}}\Z)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\Z")
_DRIVE = re.compile(r"[A-Za-z]:")
# A part of a revision such as "refs/pr/12", within git's own rules for names.
_REVISION_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\Z")
# The longest revision that stands in the name of a folder, and letters of a file's hash there:
# with the longest id it has less than 255 bytes.
_MAX_FOLDER_REVISION = 40
_FOLDER_FILE = 16
# Paths of models often begin with this folder; no organisation of the hub has this name.
_MODELS_FOLDER = "models"
_FILE_SUFFIXES = (
    *(".safetensors", ".json", ".txt", ".bin", ".gguf", ".onnx", ".tflite", ".litertlm", ".task"),
)


def parse_model_id(text: str, field: str = "model_id") -> ModelId:
    """Reads a model id from what a caller wrote.

    "org/name" and "name" are ids; a path such as "models/org/name/model.safetensors" means
    "org/name". The rules for characters are those of the HuggingFace hub: letters, digits, "_", "-"
    and ".", neither "-" nor "." at either end, no "--", no "..", no ".git" at the end.

    Args:
        text: what the caller sent.
        field: the request field it came in, for the error.

    Raises:
        MissingFieldError: the text is empty.
        InvalidModelIdError: the text contains no valid id.
    """
    if not text:
        raise MissingFieldError(f"{field} is empty", field=field)
    if len(text) > MAX_PATH_CHARS:
        raise _invalid_id(
            text, field, f"it has {len(text)} characters; the limit is {MAX_PATH_CHARS}"
        )
    parts = text.split("/")
    for part in parts:
        if not part or part in (".", "..") or "\\" in part or not part.isprintable():
            raise _invalid_id(
                text, field, "it is neither an id nor a relative path with forward slashes"
            )
    parts = _model_parts(parts)
    if not parts:
        raise _invalid_id(text, field, "it names a file but no model")
    for part in parts:
        if not _PART.match(part) or "--" in part or ".." in part or part.endswith(".git"):
            raise _invalid_id(
                text,
                field,
                f"each part must have 1 to {MAX_ID_PART_CHARS} letters, digits, '_', '-' and '.', "
                "without '-' or '.' at either end, '--', '..' or '.git' at the end",
            )
    return ModelId("/".join(parts))


def _model_parts(parts: list[str]) -> list[str]:
    """The one or two parts of a path that form the id."""
    while len(parts) > 1 and parts[0] == _MODELS_FOLDER:
        parts = parts[1:]
    files = (i for i, part in enumerate(parts) if part.lower().endswith(_FILE_SUFFIXES))
    return parts[: min(2, next(files, 2))]


def _invalid_id(text: str, field: str, why: str) -> InvalidModelIdError:
    return InvalidModelIdError(
        f"{field} {text[:80]!r} is not 'org/name' or 'name': {why}", field=field
    )


def check_revision(text: str, field: str = "revision") -> str:
    """Validates a revision of a model: a branch, a tag or a commit; empty is the default one.

    Args:
        text: what the caller sent.
        field: the request field it came in, for the error.

    Raises:
        InvalidArgumentError: it is too long, or has other characters than the names of branches
            and tags.
    """
    if len(text) > MAX_REVISION_CHARS:
        raise InvalidArgumentError(
            f"{field} {text[:80]!r} has {len(text)} characters; the limit is {MAX_REVISION_CHARS}",
            field=field,
        )
    parts = text.split("/") if text else []
    if any(
        not _REVISION_PART.match(part) or ".." in part or part.endswith((".", ".lock"))
        for part in parts
    ):
        raise InvalidArgumentError(
            f"{field} {text[:80]!r} is not a branch, a tag or a commit: each part must have "
            "letters, digits, '_', '-', '+' and '.', without '-', '+' or '.' at the beginning, "
            "'..', and '.' or '.lock' at the end",
            field=field,
        )
    return text


def at_revision(model_id: ModelId, revision: str) -> ModelId:
    """The id under which the files of a revision are fetched and kept: "org/name@revision".

    Args:
        model_id: of the model.
        revision: from `check_revision`; empty is the provider's default, without "@".
    """
    return ModelId(f"{model_id}@{revision}") if revision else model_id


def with_file(model_id: ModelId, file: str) -> ModelId:
    """The id under which a model is kept whose weights are not in the usual file.

    It has a folder of its own, so that no file of another choice lies there.

    Args:
        model_id: of the model, or a revision of it.
        file: from `check_file_path`; empty is the usual file, without "#".
    """
    return ModelId(f"{model_id}#{file}") if file else model_id


def split_revision(model_id: ModelId) -> tuple[ModelId, str]:
    """The id of the model and the revision of its files: `at_revision`, read backwards."""
    plain, _, revision = model_id.partition("#")[0].partition("@")
    return ModelId(plain), revision


def folder_name(model_id: ModelId) -> str:
    """The folder of a model in a cache: "org--name", "org--name@revision", "org--name#hash".

    No id contains "--", "@" or "#", so none collide. A "/" in a revision is "%2F", and of a long
    one its hash stands there. Of a file, see `with_file`, there is its hash.
    """
    plain, revision = split_revision(model_id)
    file = model_id.partition("#")[2]
    folder = plain.replace("/", "--")
    if revision:
        written = revision.replace("/", "%2F")
        if len(written) > _MAX_FOLDER_REVISION:
            written = f"={_digest(revision)[: _MAX_FOLDER_REVISION - 1]}"
        folder += f"@{written}"
    return f"{folder}#{_digest(file)[:_FOLDER_FILE]}" if file else folder


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def check_file_path(text: str, field: str = "file_path") -> PurePosixPath:
    """Validates the path of a file inside its model's folder: relative, and never leading out.

    This looks at the names only; `resolve_inside` also follows symlinks.

    Args:
        text: what the caller sent.
        field: the request field it came in, for the error.

    Raises:
        MissingFieldError: the text is empty.
        InvalidPathError: the path is absolute or too long, or contains "..", ".", an empty part, a
            backslash, a drive or a character that is not printable.
    """
    if not text:
        raise MissingFieldError(f"{field} is empty", field=field)
    if len(text) > MAX_PATH_CHARS:
        why = f"it has {len(text)} characters; the limit is {MAX_PATH_CHARS}"
        raise _invalid_path(text, why, field)
    if not text.isprintable() or "\\" in text or _DRIVE.match(text):
        why = "control characters, backslashes and drives are not allowed"
        raise _invalid_path(text, why, field)
    parts = text.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise _invalid_path(text, "it must be relative, without empty parts, '.' and '..'", field)
    if any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        raise _invalid_path(text, f"one of its names has more than {MAX_NAME_BYTES} bytes", field)
    return PurePosixPath(text)


def _invalid_path(text: str, why: str, field: str = "file_path") -> InvalidPathError:
    return InvalidPathError(
        f"{field} {text[:80]!r} is not a path inside the model's folder: {why}", field=field
    )


def resolve_inside(root: Path, path: PurePosixPath) -> Path:
    """The real location of a checked path under `root`, symlinks followed; it need not exist.

    Accesses the disk: call it in a thread.

    Raises:
        InvalidPathError: a symlink leads out of the root, or the path contains a loop of symlinks.
    """
    real_root = root.resolve()
    # Not Path.resolve, which raises on a loop of symlinks before Python 3.13 and not since.
    place = Path(os.path.realpath(real_root / path))
    if _has_symlink_loop(place):
        raise _invalid_path(str(path), "it does not lead to a file")
    if not place.is_relative_to(real_root):
        raise _invalid_path(str(path), "it leads out of the folder")
    return place


def _has_symlink_loop(place: Path) -> bool:
    try:
        place.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
