"""LiteRT's models for the demonstration and benchmarks, where the development provider has them.

None comes with the project's packages as a file of its own: a .tflite is copied from MediaPipe's
models, and a .litertlm from where the variable LITERTLM says, or from `../shared/models`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tools.models import model_dir

VARIABLE = "LITERTLM"
ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "models"
SEGMENTER = "mediapipe/selfie-segmenter"
LANGUAGE_MODEL = "litert/language-model"


def segmenter() -> str | None:
    """The name of the file of SEGMENTER; None if MediaPipe's model is not here."""
    found = sorted((model_dir() / "vision").rglob("*selfie*.tflite"))
    return _published(found[0], SEGMENTER, "model.tflite") if found else None


def language_model() -> str | None:
    """The name of the file of LANGUAGE_MODEL; None if there is no .litertlm, or if VARIABLE names
    none."""
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else next(iter(sorted(SHARED.glob("*.litertlm"))), None)
    if path is None or not path.is_file():
        return None
    return _published(path, LANGUAGE_MODEL, "model.litertlm")


def _published(source: Path, model: str, name: str) -> str:
    """Copies a file to where the development provider finds it, unless it is there."""
    target = model_dir() / "text" / model / name
    if not target.exists() or target.stat().st_size != source.stat().st_size:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        shutil.copyfile(source, part)
        part.replace(target)
    return name
