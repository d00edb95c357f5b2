"""From a model's folder to something that answers, with errors that a caller can read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from shared.errors import InvalidArgumentError, InvalidModelError, OutOfMemoryError, ServiceError
from shared.pipelines import FEATURE_EXTRACTION, TEXT_GENERATION
from text_svc.launch import Launch, Report
from text_svc.options import LoadOptions
from text_svc.worker.embeddings import Embedder
from text_svc.worker.transformers_engine import TransformersEngine

log = logging.getLogger(__name__)


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


def load(launch: Launch) -> tuple[TransformersEngine | Embedder, Report]:
    """Loads the model of a launch command and measures it.

    Raises:
        ServiceError: why it cannot be loaded, in a sentence without paths.
    """
    device = choose_device(launch.options)
    common: dict[str, Any] = {
        "dtype": choose_dtype(launch.options, device),
        "device": device,
        "max_length": launch.options.max_length,
    }
    try:
        loaded: TransformersEngine | Embedder
        if launch.pipeline == TEXT_GENERATION.name:
            loaded = TransformersEngine(
                launch.folder,
                max_running=launch.max_running,
                max_waiting=launch.max_waiting,
                **common,
            )
        elif launch.pipeline == FEATURE_EXTRACTION.name:
            loaded = Embedder(launch.folder, **common)
        else:
            raise InvalidArgumentError(f"pipeline {launch.pipeline!r} is not served here")
    except ServiceError:
        raise
    except (MemoryError, torch.OutOfMemoryError):
        raise OutOfMemoryError(f"model {launch.model_id} does not fit into memory") from None
    except Exception as error:  # whatever transformers raises on files that it does not like
        log.exception("the model cannot be loaded")
        raise InvalidModelError(_sentence(launch, error)) from None
    ram, vram = measure(loaded.model)
    return loaded, Report(ram_bytes=ram, vram_bytes=vram)


def _sentence(launch: Launch, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    text = lines[0].replace(str(launch.folder), launch.model_id)
    for part in (launch.folder.parent, Path.home()):
        text = text.replace(str(part), "")
    return f"model {launch.model_id} cannot be loaded: {type(error).__name__}: {text[:300]}"


def measure(model: torch.nn.Module) -> tuple[int, int]:
    """Bytes on the host and on accelerators: parameters and buffers, shared ones once."""
    seen: dict[tuple[str, int], int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        seen[tensor.device.type, tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    ram = sum(size for (kind, _), size in seen.items() if kind == "cpu")
    return ram, sum(seen.values()) - ram
