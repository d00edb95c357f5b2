"""Encoders that turn texts into vectors: GenerateEmbeddings and StreamEmbeddings."""

from __future__ import annotations

from importlib import import_module

from text_svc.formats.recipe import read_recipe
from text_svc.link.server import Handlers
from text_svc.processes.specs import EngineName, WorkerReport, WorkerSpec
from text_svc.worker.embeddings.batcher import MicroBatcher
from text_svc.worker.embeddings.embedder import Embedder
from text_svc.worker.embeddings.encoder import LoadedEncoder
from text_svc.worker.embeddings.metrics import EmbeddingMetrics
from text_svc.worker.embeddings.service import EmbeddingsHandlers
from text_svc.worker.embeddings.tokenizer import SentenceTokenizer

# Named as text: a worker does not import what the other engine needs.
ENCODERS: dict[EngineName, str] = {
    "openvino": "text_svc.worker.embeddings.openvino",
    "transformers": "text_svc.worker.embeddings.torch",
}


class FeatureExtraction:
    """A sentence encoder on the engine of a spec. Raises what the encoder's `load` does."""

    def __init__(self, spec: WorkerSpec) -> None:
        recipe = read_recipe(spec.folder)
        loaded: LoadedEncoder = import_module(ENCODERS[spec.engine]).load(spec, recipe)
        max_tokens = min(loaded.max_tokens, spec.options.max_length or loaded.max_tokens)
        self._report = loaded.report
        self._embedder = Embedder(
            SentenceTokenizer(loaded.tokenizer, recipe, max_tokens),
            MicroBatcher(
                loaded.encoder,
                pad_token=loaded.pad_token,
                max_waiting=spec.max_waiting_texts,
                metrics=EmbeddingMetrics(spec.model_id),
                weights=spec.caller_weights,
            ),
            normalized=recipe.normalize,
            max_texts=spec.max_texts,
            max_bytes=spec.max_prompt_bytes,
            max_tokens=spec.max_call_tokens,
        )

    def handlers(self) -> Handlers:
        """See `pipelines`."""
        return EmbeddingsHandlers(self._embedder).table()

    def report(self) -> WorkerReport:
        """See `pipelines`."""
        return self._report
