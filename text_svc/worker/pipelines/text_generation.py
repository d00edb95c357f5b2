"""Causal language models: GenerateText and ChatCompletion."""

from __future__ import annotations

from importlib import import_module

from ml import transformers_pb2 as pb
from text_svc.formats.litertlm import UNPACKED
from text_svc.link.server import Handlers
from text_svc.processes.specs import EngineName, WorkerReport, WorkerSpec
from text_svc.worker.engines.base import PROMPT_TEXT
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.sampling import SamplingDefaults
from text_svc.worker.generation.generator import Prompt, TextGenerator
from text_svc.worker.generation.service import GenerationHandlers
from text_svc.worker.memory import WorkingMemory
from text_svc.worker.tokenizers.chat_templates import chat_template

# Named as text: a worker does not import what the other engine needs.
ENGINES: dict[EngineName, str] = {
    "openvino": "text_svc.worker.engines.openvino",
    "transformers": "text_svc.worker.engines.transformers",
    "litert": "text_svc.worker.engines.litert_lm",
}


class TextHandlers(GenerationHandlers):
    """For an engine that reads texts: a prompt goes to it as it is, beside its tokens."""

    async def read_text(self, request: pb.TextRequest) -> Prompt:
        prompt = await super().read_text(request)
        return Prompt(prompt.ids, {PROMPT_TEXT: request.prompt})

    async def read_chat(self, request: pb.ChatRequest) -> Prompt:
        chat = self.chat(request)
        text = await chat.render(self._generator.render)
        ids = await self._generator.encode_rendered(text)
        return Prompt(ids, {PROMPT_TEXT: text}, chat.answer)


class TextGeneration:
    """A language model on the engine of a spec. Raises what the engine's `load` does."""

    def __init__(self, spec: WorkerSpec) -> None:
        metrics = EngineMetrics(spec.model_id)
        engine, tokenizer, report = import_module(ENGINES[spec.engine]).load(spec, metrics)
        if spec.engine == "litert":  # the file has its chat template and its defaults inside
            spec = spec.model_copy(update={"folder": spec.scratch / UNPACKED})
        tokenizer.chat_template = chat_template(spec.folder) or tokenizer.chat_template
        self._spec = spec
        self._report: WorkerReport = report
        self._engine: WorkingMemory = engine
        defaults = SamplingDefaults.read(spec.folder, spec.options.temperature)
        self._generator = TextGenerator(engine, tokenizer, defaults, metrics, spec.max_prompt_bytes)
        self._generator.check_template()

    def handlers(self) -> Handlers:
        """See `pipelines`."""
        kind = TextHandlers if self._spec.engine == "litert" else GenerationHandlers
        return kind(self._generator, self._spec).table()

    def report(self) -> WorkerReport:
        """See `pipelines`."""
        return self._report

    def memory(self) -> WorkingMemory:
        """See `pipelines`."""
        return self._engine
