"""GenerateText for pipelines behind `Infer`: an engine on the pipeline's own model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from text_svc.processes.specs import WorkerSpec
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.sampling import SamplingDefaults
from text_svc.worker.engines.transformers import TransformersEngine, generate_limits
from text_svc.worker.generation.generator import TextGenerator
from text_svc.worker.tokenizers.base import Tokenizer


def text_generator(
    model: Any,
    tokenizer: Tokenizer,
    end_tokens: Sequence[int],
    spec: WorkerSpec,
    *,
    context: int,
    new_tokens: int | None = None,
    greedy: bool = False,
) -> TextGenerator:
    """A generator that runs the model's `generate`.

    Args:
        model: ready for inference.
        tokenizer: of the prompts and the answers.
        end_tokens: ids that end an answer.
        spec: the folder, whose generation config has the defaults, and the limits.
        context: see `Limits`.
        new_tokens: see `Limits`.
        greedy: does not sample where neither the caller nor the model sets a temperature.
    """
    metrics = EngineMetrics(spec.model_id)
    limits = generate_limits(spec, context, new_tokens)
    defaults = SamplingDefaults.read(spec.folder, spec.options.temperature)
    if greedy:
        defaults = replace(defaults, temperature=defaults.temperature or 0.0)
    engine = TransformersEngine(model, limits, end_tokens, metrics)
    return TextGenerator(engine, tokenizer, defaults, metrics, spec.max_prompt_bytes)
