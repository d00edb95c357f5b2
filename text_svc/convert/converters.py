"""Which pipelines have a converter: a module of this package with `convert`."""

from __future__ import annotations

from shared.pipelines import FEATURE_EXTRACTION, TEXT_GENERATION

CONVERTERS = {TEXT_GENERATION.name: "decoder", FEATURE_EXTRACTION.name: "encoder"}
