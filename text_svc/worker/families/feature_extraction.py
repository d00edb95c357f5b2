"""Encoders that turn texts into vectors: GenerateEmbeddings."""

from __future__ import annotations

from text_svc.launch import Launch
from text_svc.worker.embeddings import Embedder
from text_svc.worker.embeddings_service import EmbeddingsServicer
from text_svc.worker.families import Loaded
from text_svc.worker.torch_model import choose_device, choose_dtype, loading_errors, measure


def load(launch: Launch) -> Loaded:
    """See `families.load`."""
    device = choose_device(launch.options)
    with loading_errors(launch):
        embedder = Embedder(
            launch.folder,
            dtype=choose_dtype(launch.options, device),
            device=device,
            max_length=launch.options.max_length,
        )
    return Loaded(EmbeddingsServicer(embedder, launch), measure(embedder.model))
