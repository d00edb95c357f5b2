"""Sentence embeddings as the model's own sentence-transformers files describe them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer

from shared.errors import InvalidModelError

# Tokens of one padded batch: more does not run faster on a CPU and costs memory.
BATCH_TOKENS = 4096
# Where no file says how long a text may be.
DEFAULT_MAX_TOKENS = 512

Pooling = Literal["mean", "cls", "max"]


@dataclass(frozen=True)
class Recipe:
    """How token vectors become a sentence vector."""

    pooling: Pooling
    normalize: bool
    max_tokens: int | None


def read_recipe(folder: Path) -> Recipe:
    """Reads modules.json, the pooling's config and sentence_bert_config.json where they exist.

    A plain encoder without them is mean-pooled and normalised.

    Raises:
        InvalidModelError: the files ask for a module or a pooling that is not served.
    """
    modules = _read_json(folder / "modules.json")
    config = _read_json(folder / "sentence_bert_config.json") or {}
    max_tokens = config.get("max_seq_length") if isinstance(config, dict) else None
    if not isinstance(modules, list):
        return Recipe("mean", True, max_tokens)
    kinds = {str(module.get("type", "")).rsplit(".", 1)[-1]: module for module in modules}
    if unknown := kinds.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise InvalidModelError(f"modules.json names {', '.join(sorted(unknown))}: not served")
    pooling: Pooling = "mean"
    if "Pooling" in kinds:
        pooling = _pooling(_read_json(folder / str(kinds["Pooling"]["path"]) / "config.json") or {})
    return Recipe(pooling, "Normalize" in kinds, max_tokens)


def _pooling(config: dict[str, Any]) -> Pooling:
    modes = {
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    }
    names: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "max": "max"}
    if len(modes) != 1 or not modes <= names.keys():
        raise InvalidModelError(f"the pooling {', '.join(sorted(modes)) or 'none'} is not served")
    return names[modes.pop()]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise InvalidModelError(f"{path.name} is no JSON") from None


class Embedder:
    """An encoder on torch. `embed` blocks: call it in a thread.

    Args:
        folder: a directory of config, tokenizer and safetensors.
        dtype: of the weights.
        device: "cpu" or "cuda:N".
        max_length: tokens of one text at most, the rest is cut off; None is the model's own.
    """

    def __init__(
        self, folder: Path, *, dtype: torch.dtype, device: str, max_length: int | None
    ) -> None:
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self.recipe = read_recipe(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        self.model = (
            AutoModel.from_pretrained(folder, dtype=dtype, use_safetensors=True, **local)
            .eval()
            .to(device)
        )
        context = getattr(self.model.config, "max_position_embeddings", DEFAULT_MAX_TOKENS)
        own = self.recipe.max_tokens or min(self.tokenizer.model_max_length, context)
        self.max_tokens = min(own, context, max_length or own)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of texts, shape (texts, dimensions), in their order."""
        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_tokens, padding=False
        )["input_ids"]
        vectors: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(texts)
        with torch.inference_mode():
            for batch in batches([len(ids) for ids in encoded], BATCH_TOKENS):
                rows = self._embed_batch([encoded[index] for index in batch])
                for index, row in zip(batch, rows, strict=True):
                    vectors[index] = row
        return np.stack(vectors)

    def _embed_batch(self, encoded: list[list[int]]) -> npt.NDArray[np.float32]:
        padded = self.tokenizer.pad({"input_ids": encoded}, return_tensors="pt")
        padded = padded.to(self.model.device)
        hidden = self.model(**padded).last_hidden_state.float()
        mask = padded["attention_mask"].unsqueeze(-1).float()
        if self.recipe.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.recipe.pooling == "max":
            pooled = hidden.masked_fill(mask == 0, -1e9).max(1).values
        else:
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        if self.recipe.normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=1)
        rows: npt.NDArray[np.float32] = pooled.cpu().numpy()
        return rows


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of texts, shortest first, in batches whose padded size stays within `budget` tokens.

    A text longer than the budget is a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[index] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
