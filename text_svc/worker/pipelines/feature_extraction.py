"""Encoders that turn texts into vectors: GenerateEmbeddings and StreamEmbeddings."""

from __future__ import annotations

from importlib import import_module

from text_svc.formats.recipe import read_recipe
from text_svc.processes.launch import (
    EngineName,
    WorkerSpec,
)
from text_svc.worker.embeddings.batcher import MicroBatcher
from text_svc.worker.embeddings.embedder import Embedder
from text_svc.worker.embeddings.encoder import LoadedEncoder
from text_svc.worker.embeddings.service import EmbeddingsHandlers
from text_svc.worker.embeddings.tokenizer import SentenceTokenizer
from text_svc.worker.engines.metrics import EmbeddingMetrics
from text_svc.worker.loaded import LoadedPipeline

ENGINES: dict[EngineName, str] = {
    "openvino": "text_svc.worker.embeddings.openvino",
    "transformers": "text_svc.worker.embeddings.torch",
}


def load(launch: WorkerSpec) -> LoadedPipeline:
    """See `pipelines.load`. Engines are named as text: one never imports what another needs."""
    recipe = read_recipe(launch.folder)
    loaded: LoadedEncoder = import_module(ENGINES[launch.engine]).load(launch, recipe)
    max_tokens = min(loaded.max_tokens, launch.options.max_length or loaded.max_tokens)
    embedder = Embedder(
        SentenceTokenizer(loaded.tokenizer, recipe, max_tokens),
        MicroBatcher(
            loaded.encoder,
            pad_token=loaded.pad_token,
            max_waiting=launch.max_waiting_texts,
            metrics=EmbeddingMetrics(launch.model_id),
        ),
        normalized=recipe.normalize,
        max_texts=launch.max_texts,
        max_bytes=launch.max_prompt_bytes,
        max_tokens=launch.max_call_tokens,
    )
    return LoadedPipeline(EmbeddingsHandlers(embedder).table(), loaded.report)
