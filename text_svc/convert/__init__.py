"""Conversion of a model to OpenVINO: `python -m text_svc.convert`, a process that ends.

It needs torch and transformers, which the process that serves the converted model never imports.
"""

from __future__ import annotations

from shared.pipelines import FEATURE_EXTRACTION, TEXT_GENERATION

# Pipelines whose models can be converted, and the module of this package with their `convert`.
CONVERTERS = {TEXT_GENERATION.name: "decoder", FEATURE_EXTRACTION.name: "encoder"}
