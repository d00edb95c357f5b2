"""Tiny models for every pipeline with random weights, built offline from configurations.

The seeds are fixed: the same folder comes out each time. `build(name, folder)` makes one.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch

from tests.support.tiny_parts import BUILDERS

# Modules that register builders.
_THEMES = (
    *("tiny_answers", "tiny_encoders", "tiny_multimodal", "tiny_pictures", "tiny_sounds"),
    *("tiny_vision", "tiny_visual"),
)


def build(name: str, folder: Path) -> Path:
    """Makes one model in `folder` and returns it."""
    for theme in _THEMES:
        import_module(f"tests.support.{theme}")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    BUILDERS[name](folder)
    return folder
