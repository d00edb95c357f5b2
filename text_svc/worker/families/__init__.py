"""What a worker can be: one module a pipeline family, found by the pipeline's canonical name.

Each module has `load(launch) -> Loaded`. Modules are named as text, so that a worker imports what
its own family needs and no more: torch and transformers alone take seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from ml.transformers_pb2_grpc import TransformersServiceServicer
from shared.errors import InvalidArgumentError
from shared.pipelines import FEATURE_EXTRACTION, TEXT_GENERATION
from text_svc.launch import Launch, Report

FAMILIES = {
    TEXT_GENERATION.name: "text_generation",
    FEATURE_EXTRACTION.name: "feature_extraction",
}


@dataclass(frozen=True)
class Loaded:
    """A model in memory: what answers calls, and what it was measured to cost."""

    servicer: TransformersServiceServicer
    report: Report


def load(launch: Launch) -> Loaded:
    """Loads the model of a launch command with its family's module. Blocks.

    Raises:
        ServiceError: why it cannot be loaded, in a sentence without paths.
    """
    name = FAMILIES.get(launch.pipeline)
    if name is None:
        raise InvalidArgumentError(f"pipeline {launch.pipeline!r} is not served here")
    loaded: Loaded = import_module(f"{__name__}.{name}").load(launch)
    return loaded
