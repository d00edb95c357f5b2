"""The manifest of a converted model, which is read without torch."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from shared.errors import InvalidModelError
from shared.files.disk import read_json

log = logging.getLogger(__name__)

MANIFEST = "conversion.json"
MODEL = "openvino_model.xml"
# The tokenizer as OpenVINO GenAI reads it, which needs the vocabulary for forms of answers.
TOKENIZER, DETOKENIZER = "openvino_tokenizer.xml", "openvino_detokenizer.xml"
# A manifest has some kilobytes.
MAX_MANIFEST_BYTES = 1 << 20
# A folder that is not complete yet has this prefix and the id of the process that fills it.
PART_PREFIX = ".part-"


class Manifest(BaseModel):
    """The file `conversion.json`, written last: a folder that has it is complete.

    Attributes:
        refused: why the model cannot be converted; then the folder holds nothing else.
        context: tokens of prompt and answer together that the model takes, or of one text.
        cache_width: numbers that one token takes in the key-value cache, all layers together.
        end_tokens: ids that end an answer.
        pad_token: the id that fills up the short texts of a batch.
        weight_bytes: size of the converted weights.
        files: sizes of the other files of the folder; empty if an earlier version wrote it.
    """

    model_config = ConfigDict(frozen=True)

    refused: str = ""
    context: int = Field(0, ge=0)
    cache_width: int = Field(0, ge=0)
    end_tokens: list[int] = []
    pad_token: int = 0
    weight_bytes: int = Field(0, ge=0)
    files: dict[str, int] = {}

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder; None where there is none, or the folder is damaged."""
        path = folder / MANIFEST
        try:
            manifest = cls.model_validate(read_json(path, max_bytes=MAX_MANIFEST_BYTES))
            damage = next(
                (each for each in manifest.files.items() if not _has(folder, *each)), None
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, InvalidModelError):
            damage = MANIFEST, 0
        if damage:
            log.warning(
                "a converted model is damaged, and is converted anew",
                extra={"folder": folder.name, "file": damage[0]},
            )
            return None
        return manifest

    def write(self, folder: Path) -> None:
        """Completes a folder: the manifest, with the sizes of all other files."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
        complete = self.model_copy(update={"files": sizes})
        (folder / MANIFEST).write_text(complete.model_dump_json())


def _has(folder: Path, name: str, size: int) -> bool:
    path = folder / name
    return path.is_file() and path.stat().st_size == size
