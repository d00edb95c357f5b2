"""What every model on torch needs: its device and dtype, readable errors, its measure."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from shared.errors import InvalidArgumentError, InvalidModelError, OutOfMemoryError, ServiceError
from text_svc.launch import Launch, Report
from text_svc.options import LoadOptions

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


@contextmanager
def loading_errors(launch: Launch) -> Iterator[None]:
    """Turns what transformers and torch raise on a bad model into errors that a caller can read.

    Raises:
        ServiceError: why the model cannot be loaded, in a sentence without paths.
    """
    try:
        yield
    except ServiceError:
        raise
    except (MemoryError, torch.OutOfMemoryError):
        raise OutOfMemoryError(f"model {launch.model_id} does not fit into memory") from None
    except Exception as error:  # whatever transformers raises on files that it does not like
        log.exception("the model cannot be loaded")
        raise InvalidModelError(_sentence(launch, error)) from None


def _sentence(launch: Launch, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    text = lines[0].replace(str(launch.folder), launch.model_id)
    for part in (launch.folder.parent, Path.home()):
        text = text.replace(str(part), "")
    return f"model {launch.model_id} cannot be loaded: {type(error).__name__}: {text[:300]}"


def measure(model: torch.nn.Module) -> Report:
    """Bytes on the host and on accelerators: parameters and buffers, shared ones once."""
    seen: dict[tuple[str, int], int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        seen[tensor.device.type, tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    ram = sum(size for (kind, _), size in seen.items() if kind == "cpu")
    return Report(ram_bytes=ram, vram_bytes=sum(seen.values()) - ram)
