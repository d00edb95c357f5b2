"""What every model on torch needs: its device and dtype, readable errors, its measure."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from shared.errors import InvalidArgumentError, InvalidModelError
from text_svc.formats import load_errors
from text_svc.options import LoadOptions
from text_svc.processes.launch import (
    Launch,
    Report,
)

# Where a config names no context length.
DEFAULT_CONTEXT = 2048
# Of the free memory of a card that a key-value cache of unsaid size takes at most.
CUDA_CACHE_SHARE = 0.5


def choose_device(options: LoadOptions) -> str:
    """The torch device of an option: "auto" is CUDA where there is one.

    Raises:
        InvalidArgumentError: CUDA is asked for and there is none, or no such card.
    """
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if options.device == "auto":
        return "cuda:0" if cards else "cpu"
    if options.device == "cpu":
        return "cpu"
    index = int(options.device.partition(":")[2] or 0)
    if index >= cards:
        raise InvalidArgumentError(
            f"device {options.device!r} is not here: this service has {cards} CUDA devices",
            field="options[device]",
        )
    return f"cuda:{index}"


def choose_dtype(options: LoadOptions, device: str) -> torch.dtype:
    """The torch dtype of an option: "auto" is float32 on the CPU and bfloat16 on CUDA."""
    if options.dtype == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, options.dtype)
    return dtype


def loading_errors(launch: Launch) -> AbstractContextManager[None]:
    """See `text_svc.formats.load_errors`."""
    return load_errors.loading_errors(launch.model_id, launch.folder)


def load_causal_lm(folder: Path, dtype: torch.dtype | None, device: str = "cpu") -> Any:
    """A causal language model of safetensors, ready for inference.

    Args:
        folder: config and weights.
        dtype: of the weights; None keeps what the files have.
        device: "cpu" or "cuda:N".

    Raises:
        InvalidModelError: weights are missing or have the wrong shape.
        OSError, ValueError: whatever transformers says to broken files.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype or "auto",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        # transformers would fill them with random numbers.
        raise InvalidModelError(f"the weights lack {len(missing)} tensors, such as {missing[0]}")
    return model.eval().to(device)


def context_of(config: Any) -> int:
    """Tokens of prompt and answer that a model was made for."""
    context: int = getattr(config, "max_position_embeddings", None) or DEFAULT_CONTEXT
    return context


def end_tokens_of(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the generation config's, else the tokenizer's."""
    end = model.generation_config.eos_token_id
    if end is None:
        end = tokenizer.eos_token_id
    if end is None:
        return []
    return list(end) if isinstance(end, list | tuple) else [int(end)]


def cache_budget(launch: Launch, device: torch.device) -> int:
    """Bytes that a key-value cache may take beside a loaded model."""
    if device.type == "cpu":
        return launch.cache_bytes
    if launch.options.cache_size_mb:
        return launch.options.cache_size_mb << 20
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * CUDA_CACHE_SHARE)


def measure(model: torch.nn.Module, beside: int = 0) -> Report:
    """Bytes on the host and on accelerators: parameters and buffers, shared ones once.

    Args:
        model: all on one kind of device, if there is anything beside it.
        beside: bytes that it has there in other forms.
    """
    seen: dict[tuple[str, int], int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        seen[tensor.device.type, tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    ram = sum(size for (kind, _), size in seen.items() if kind == "cpu")
    vram = sum(seen.values()) - ram
    if vram:
        vram += beside
    else:
        ram += beside
    return Report(ram_bytes=ram, vram_bytes=vram)
