"""Causal language models: GenerateText and ChatCompletion."""

from __future__ import annotations

from text_svc.launch import Launch
from text_svc.worker.families import Loaded
from text_svc.worker.generation_service import GenerationServicer
from text_svc.worker.torch_model import choose_device, choose_dtype, loading_errors, measure
from text_svc.worker.transformers_engine import TransformersEngine


def load(launch: Launch) -> Loaded:
    """See `families.load`."""
    device = choose_device(launch.options)
    with loading_errors(launch):
        engine = TransformersEngine(
            launch.folder,
            dtype=choose_dtype(launch.options, device),
            device=device,
            max_length=launch.options.max_length,
            max_running=launch.max_running,
            max_waiting=launch.max_waiting,
        )
    return Loaded(GenerationServicer(engine, launch), measure(engine.model))
