"""Model ids and file paths from the wire, checked before anything is done with them."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NewType

from shared.errors import InvalidModelIdError, InvalidPathError, MissingFieldError

# "org/name" or "name", checked by `parse_model_id`, which alone makes them.
ModelId = NewType("ModelId", str)

# huggingface_hub.utils.validate_repo_id limits the name; here the organisation too.
MAX_ID_PART_CHARS = 96
MAX_PATH_CHARS = 1024
# The file systems' own limit is 255 bytes a name.
MAX_NAME_BYTES = 255

_PART = re.compile(rf"(?=.{{1,{MAX_ID_PART_CHARS}}}\Z)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\Z")
_DRIVE = re.compile(r"[A-Za-z]:")
# The folder that paths of models often begin with; no organisation of the hub has this name.
_MODELS_FOLDER = "models"
_FILE_SUFFIXES = (".safetensors", ".json", ".txt", ".bin", ".gguf", ".onnx", ".tflite")


def parse_model_id(text: str, field: str = "model_id") -> ModelId:
    """The model id that a text means.

    "org/name" and "name" are ids; a path such as "models/org/name/model.safetensors" means
    "org/name". The rules for characters are the HuggingFace hub's: letters, digits, "_", "-" and
    ".", neither "-" nor "." at an end, no "--", no "..", no ".git" at the end.

    Args:
        text: what the caller sent.
        field: the request field that held it, for the error.

    Raises:
        MissingFieldError: the text is empty.
        InvalidModelIdError: no id can be read from it.
    """
    if not text:
        raise MissingFieldError(f"{field} is empty", field=field)
    if len(text) > MAX_PATH_CHARS:
        raise _invalid_id(text, field, f"it has {len(text)} characters of at most {MAX_PATH_CHARS}")
    parts = text.split("/")
    for part in parts:
        if not part or part in (".", "..") or "\\" in part or not part.isprintable():
            raise _invalid_id(
                text, field, "it is neither an id nor a relative path with forward slashes"
            )
    parts = _model_parts(parts)
    if not parts:
        raise _invalid_id(text, field, "it names a file and no model")
    for part in parts:
        if not _PART.match(part) or "--" in part or ".." in part or part.endswith(".git"):
            raise _invalid_id(
                text,
                field,
                f"each part has 1 to {MAX_ID_PART_CHARS} letters, digits, '_', '-' and '.', "
                "without '-' or '.' at an end, '--', '..' or '.git'",
            )
    return ModelId("/".join(parts))


def _model_parts(parts: list[str]) -> list[str]:
    """The one or two parts of a path that are the id."""
    while len(parts) > 1 and parts[0] == _MODELS_FOLDER:
        parts = parts[1:]
    files = (i for i, part in enumerate(parts) if part.lower().endswith(_FILE_SUFFIXES))
    return parts[: min(2, next(files, 2))]


def _invalid_id(text: str, field: str, why: str) -> InvalidModelIdError:
    return InvalidModelIdError(
        f"{field} {text[:80]!r} is not 'org/name' or 'name': {why}", field=field
    )


def folder_name(model_id: str) -> str:
    """The name of a model's folder in a cache: "org--name". "--" is in no id, so none collide."""
    return model_id.replace("/", "--")


def check_file_path(text: str) -> PurePosixPath:
    """A file's path inside its model's folder, known to be relative and to stay inside by name.

    Symlinks are another matter: `resolve_inside` follows them.

    Raises:
        MissingFieldError: the text is empty.
        InvalidPathError: absolute, "..", ".", an empty part, a backslash, a drive, a character
            that does not print, or too long.
    """
    if not text:
        raise MissingFieldError("file_path is empty", field="file_path")
    if len(text) > MAX_PATH_CHARS:
        raise _invalid_path(text, f"it has {len(text)} characters of at most {MAX_PATH_CHARS}")
    if not text.isprintable() or "\\" in text or _DRIVE.match(text):
        raise _invalid_path(text, "control characters, backslashes and drives are refused")
    parts = text.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise _invalid_path(text, "it must be relative, without empty parts, '.' and '..'")
    if any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        raise _invalid_path(text, f"a name in it has more than {MAX_NAME_BYTES} bytes")
    return PurePosixPath(text)


def _invalid_path(text: str, why: str) -> InvalidPathError:
    return InvalidPathError(
        f"file_path {text[:80]!r} is not a path inside the model's folder: {why}",
        field="file_path",
    )


def resolve_inside(root: Path, path: PurePosixPath) -> Path:
    """The real place of a checked path under `root`, symlinks followed; it need not exist.

    Touches the disk: call it off the event loop.

    Raises:
        InvalidPathError: a symlink leads out of the root, or in circles.
    """
    real_root = root.resolve()
    try:
        place = (real_root / path).resolve()
    except (OSError, RuntimeError):  # a circle of symlinks, a name that the disk refuses
        raise _invalid_path(str(path), "it does not lead to a file") from None
    if not place.is_relative_to(real_root):
        raise _invalid_path(str(path), "it leads out of the folder")
    return place
