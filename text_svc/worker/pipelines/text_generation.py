"""Causal language models: GenerateText and ChatCompletion."""

from __future__ import annotations

from importlib import import_module

from text_svc.processes.launch import (
    EngineName,
    WorkerSpec,
)
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.sampling import SamplingDefaults
from text_svc.worker.generation.generator import TextGenerator
from text_svc.worker.generation.service import GenerationHandlers
from text_svc.worker.loaded import LoadedPipeline

ENGINES: dict[EngineName, str] = {
    "openvino": "text_svc.worker.engines.openvino",
    "transformers": "text_svc.worker.engines.transformers",
}


def load(launch: WorkerSpec) -> LoadedPipeline:
    """See `pipelines.load`. Engines are named as text: one never imports what another needs."""
    metrics = EngineMetrics(launch.model_id)
    engine, tokenizer, report = import_module(ENGINES[launch.engine]).load(launch, metrics)
    generator = TextGenerator(
        engine,
        tokenizer,
        SamplingDefaults.read(launch.folder),
        metrics,
        launch.max_prompt_bytes,
    )
    return LoadedPipeline(GenerationHandlers(generator, launch).table(), report)
