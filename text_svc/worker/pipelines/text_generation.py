"""Causal language models: GenerateText and ChatCompletion."""

from __future__ import annotations

from importlib import import_module

from text_svc.link.server import Handlers
from text_svc.processes.specs import EngineName, WorkerReport, WorkerSpec
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.sampling import SamplingDefaults
from text_svc.worker.generation.generator import TextGenerator
from text_svc.worker.generation.service import GenerationHandlers
from text_svc.worker.tokenizers.chat_templates import chat_template

# Named as text: a worker does not import what the other engine needs.
ENGINES: dict[EngineName, str] = {
    "openvino": "text_svc.worker.engines.openvino",
    "transformers": "text_svc.worker.engines.transformers",
}


class TextGeneration:
    """A language model on the engine of a spec. Raises what the engine's `load` does."""

    def __init__(self, spec: WorkerSpec) -> None:
        metrics = EngineMetrics(spec.model_id)
        engine, tokenizer, report = import_module(ENGINES[spec.engine]).load(spec, metrics)
        tokenizer.chat_template = chat_template(spec.folder) or tokenizer.chat_template
        self._spec = spec
        self._report: WorkerReport = report
        defaults = SamplingDefaults.read(spec.folder, spec.options.temperature)
        self._generator = TextGenerator(engine, tokenizer, defaults, metrics, spec.max_prompt_bytes)
        self._generator.check_template()

    def handlers(self) -> Handlers:
        """See `pipelines`."""
        return GenerationHandlers(self._generator, self._spec).table()

    def report(self) -> WorkerReport:
        """See `pipelines`."""
        return self._report
