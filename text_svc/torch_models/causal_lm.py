"""Causal language models on torch, and the memory that their key-value cache may take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from text_svc.processes.specs import WorkerSpec
from text_svc.torch_models.pretrained import load_model

# Largest share of a card's free memory for a key-value cache of unspecified size.
MAX_CUDA_CACHE_SHARE = 0.5


def load_causal_lm(folder: Path, dtype: torch.dtype | None, device: str = "cpu") -> Any:
    """A causal language model. Arguments and errors are those of `load_model`."""
    return load_model(AutoModelForCausalLM, folder, dtype=dtype, device=device)


def cache_budget(spec: WorkerSpec, device: torch.device) -> int:
    """Bytes that a key-value cache may take beside a loaded model."""
    if device.type == "cpu" or spec.options.cache_size_mb:
        return spec.cache_bytes
    free, _ = torch.cuda.mem_get_info(device)
    held = int(free * MAX_CUDA_CACHE_SHARE)
    return min(spec.cache_bytes, held) if spec.cache_bytes else held
