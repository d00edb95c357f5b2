"""Encoders that turn texts into vectors: GenerateEmbeddings and StreamEmbeddings."""

from __future__ import annotations

from text_svc.launch import Launch
from text_svc.worker.embeddings import Embedder
from text_svc.worker.embeddings_batcher import MicroBatcher
from text_svc.worker.embeddings_encoder import Encoder
from text_svc.worker.embeddings_recipe import max_tokens, read_recipe
from text_svc.worker.embeddings_service import EmbeddingsServicer
from text_svc.worker.embeddings_tokenizer import TextTokenizer
from text_svc.worker.families import Loaded


def load(launch: Launch) -> Loaded:
    """See `families.load`."""
    return _on_torch(launch)


def _on_torch(launch: Launch) -> Loaded:
    from transformers import AutoTokenizer

    from text_svc.worker.embeddings_module import load_module
    from text_svc.worker.embeddings_torch import TorchEncoder
    from text_svc.worker.torch_model import choose_device, choose_dtype, loading_errors, measure

    device = choose_device(launch.options)
    with loading_errors(launch):
        recipe = read_recipe(launch.folder)
        dtype = choose_dtype(launch.options, device)
        module = load_module(launch.folder, recipe, dtype=dtype, device=device)
        tokenizer = AutoTokenizer.from_pretrained(launch.folder, local_files_only=True)
        limit = max_tokens(
            recipe,
            getattr(module.transformer.config, "max_position_embeddings", None),
            tokenizer.model_max_length,
        )
        limit = min(limit, launch.options.max_length or limit)
        texts = TextTokenizer(tokenizer.backend_tokenizer, recipe, limit)
        encoder = TorchEncoder(module)
    embedder = _embedder(launch, texts, encoder, tokenizer.pad_token_id or 0, recipe.normalize)
    return Loaded(EmbeddingsServicer(embedder), measure(module))


def _embedder(
    launch: Launch, tokenizer: TextTokenizer, encoder: Encoder, pad_token: int, normalized: bool
) -> Embedder:
    return Embedder(
        tokenizer,
        MicroBatcher(encoder, pad_token=pad_token, max_waiting=launch.max_waiting_texts),
        normalized=normalized,
        max_texts=launch.max_texts,
        max_bytes=launch.max_prompt_bytes,
        max_tokens=launch.max_call_tokens,
    )
