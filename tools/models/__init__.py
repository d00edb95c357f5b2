"""The models folder: where it is, what belongs in it and how it is filled."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def model_dir() -> Path:
    """Return the folder that holds the models: MODEL_DIR, or `models` in the repository."""
    named = os.environ.get("MODEL_DIR")
    return Path(named).expanduser().resolve() if named else REPOSITORY / "models"
