"""What a converted folder says about itself, for those who have no torch to ask."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

MANIFEST = "export.json"


class Manifest(BaseModel):
    """The file `export.json`, written last: a folder that has it is whole.

    Attributes:
        refused: why the model cannot be converted; then the folder holds nothing else.
        context: tokens of prompt and answer that the model was made for.
        cache_width: numbers that one token takes in the key-value cache, all layers together.
        end_tokens: ids that end an answer.
        weight_bytes: size of the converted weights.
    """

    model_config = ConfigDict(frozen=True)

    refused: str = ""
    context: int = 0
    cache_width: int = 0
    end_tokens: list[int] = []
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
