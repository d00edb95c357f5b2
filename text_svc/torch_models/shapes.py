"""Keeps a model from being larger than its files: checked before its memory is allocated.

transformers builds a model from config.json without memory, puts in the tensors of the files, and
then allocates and initialises what is left. That rest is what config.json alone says, so a small
file with a wide configuration would take any amount. `bounded_by_files` looks between the last two
steps; this takes an internal method of transformers, which the pinned version has, and a test
notices if it is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules import module as torch_module
from transformers import PreTrainedModel

from shared.errors import InvalidModelError
from text_svc.formats.weights import model_tensors

# Parameters and modules that a model may have for each tensor of its files, and besides. Modules
# without parameters, such as activations, make up to three for a tensor.
PARAMETERS_PER_TENSOR = 4
MODULES_PER_TENSOR = 8
MORE_PARTS = 5000
# Bytes that a model may have without a tensor in its files: tables of positions, masks, a pooler.
MAX_UNFILLED_BYTES = 256 << 20

# The step of transformers that allocates what no file has filled.
_BEFORE_ALLOCATING = "_finalize_model_loading"

_loading = threading.Lock()


@contextmanager
def bounded_by_files(folder: Path) -> Iterator[None]:
    """What transformers loads in this context must fit the weights in `folder`.

    Raises:
        InvalidModelError: config.json asks for more parts than the files have, for tensors of
            other shapes, or for over MAX_UNFILLED_BYTES that no file fills.
    """
    tensors = len(model_tensors(folder))
    finalize = getattr(PreTrainedModel, _BEFORE_ALLOCATING)

    def checked(model: Any, load_config: Any, loading_info: Any) -> Any:
        _check_shapes(loading_info)
        _check_unfilled(model, loading_info)
        return finalize(model, load_config, loading_info)

    with _loading, ExitStack() as hooks:
        parameters = _counted("parameters", PARAMETERS_PER_TENSOR * tensors + MORE_PARTS, tensors)
        modules = _counted("modules", MODULES_PER_TENSOR * tensors + MORE_PARTS, tensors)
        for handle in (
            torch_module.register_module_parameter_registration_hook(parameters),
            torch_module.register_module_module_registration_hook(modules),
        ):
            hooks.callback(handle.remove)
        hooks.callback(setattr, PreTrainedModel, _BEFORE_ALLOCATING, staticmethod(finalize))
        setattr(PreTrainedModel, _BEFORE_ALLOCATING, staticmethod(checked))
        yield


def _counted(what: str, limit: int, tensors: int) -> Any:
    """A hook of torch that counts what modules register, and ends the building at the limit."""
    count = 0

    def registered(owner: torch.nn.Module, name: str, part: Any) -> None:
        nonlocal count
        count += 1
        if count > limit:
            raise InvalidModelError(
                f"config.json makes a model of over {limit} {what}, and the files have {tensors} "
                "tensors"
            )

    return registered


def _check_shapes(loading_info: Any) -> None:
    for name, in_file, in_model in sorted(loading_info.mismatched_keys, key=lambda each: each[0]):
        raise InvalidModelError(
            f"tensor {name[:200]} has the shape {list(in_file)} in the file and "
            f"{list(in_model)} by config.json"
        )


def _check_unfilled(model: Any, loading_info: Any) -> None:
    """Adds up what would be allocated without a tensor of the files."""
    tied = model.all_tied_weights_keys
    # Of tensors that are one and the same, any may be in the files; then it is what they all are.
    found = {source for name, source in tied.items() if name not in loading_info.missing_keys}
    missing = loading_info.missing_keys - tied.keys() - found
    unfilled = {name: model.get_parameter_or_buffer(name) for name in missing}
    unfilled |= dict(model.named_non_persistent_buffers())
    sizes = {name: each.numel() * each.element_size() for name, each in unfilled.items()}
    if sum(sizes.values()) > MAX_UNFILLED_BYTES:
        name = max(sizes, key=lambda each: sizes[each])
        kind = "is in no file" if name in missing else "is computed"
        raise InvalidModelError(
            f"config.json asks for {sum(sizes.values())} bytes that no file has; the limit is "
            f"{MAX_UNFILLED_BYTES}: tensor {name[:200]} of shape {list(unfilled[name].shape)} "
            f"{kind}"
        )
