"""Causal language models: GenerateText and ChatCompletion."""

from __future__ import annotations

from importlib import import_module

from text_svc.launch import Engine, Launch
from text_svc.worker.engine_metrics import EngineMetrics
from text_svc.worker.families import Loaded
from text_svc.worker.generation import TextGenerator
from text_svc.worker.generation_service import GenerationServicer
from text_svc.worker.sampling import SamplingDefaults

ENGINES: dict[Engine, str] = {
    "openvino": "text_svc.worker.openvino_engine",
    "transformers": "text_svc.worker.transformers_engine",
}


def load(launch: Launch) -> Loaded:
    """See `families.load`. Engines are named as text: each imports what the other does not need."""
    metrics = EngineMetrics(launch.model_id)
    engine, tokenizer, report = import_module(ENGINES[launch.engine]).load(launch, metrics)
    generator = TextGenerator(
        engine,
        tokenizer,
        SamplingDefaults.read(launch.folder),
        metrics,
        launch.max_prompt_bytes,
    )
    return Loaded(GenerationServicer(generator, launch), report)
