"""The manifest of a converted model, which is read without torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

MANIFEST = "conversion.json"
MODEL = "openvino_model.xml"
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
    """

    model_config = ConfigDict(frozen=True)

    refused: str = ""
    context: int = 0
    cache_width: int = 0
    end_tokens: list[int] = []
    pad_token: int = 0
    weight_bytes: int = 0

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder; None where there is none."""
        try:
            return cls.model_validate_json((folder / MANIFEST).read_bytes())
        except FileNotFoundError:
            return None

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(self.model_dump_json())
