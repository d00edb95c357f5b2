"""What every model on torch needs: a device and dtype, complete weights, limits and memory use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from shared.errors import InvalidArgumentError, InvalidModelError
from text_svc.options import LoadOptions
from text_svc.processes.specs import WorkerReport
from text_svc.torch_models.shapes import bounded_by_files
from text_svc.torch_models.tokenizer import (
    load_tokenizer,
    read_processors_tokenizers_here,
    set_inputs,
)

# The context length of a model whose config names none.
DEFAULT_CONTEXT = 2048
# A limit above this is none: tokenizers without one of their own say int(1e30).
NO_LIMIT = 1 << 20
# Where configs say how many positions a model has, and where a decoder's stands beside that.
_POSITIONS = (
    *("max_position_embeddings", "max_target_positions", "max_seq_len"),
    "max_encoder_position_embeddings",
)
_DECODER_POSITIONS = "max_decoder_position_embeddings"


def choose_device(options: LoadOptions) -> str:
    """The torch device of an option: "auto" is CUDA where there is one.

    Raises:
        InvalidArgumentError: the option asks for a CUDA device that does not exist.
    """
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if options.device == "auto":
        return "cuda:0" if cards else "cpu"
    if options.device == "cpu":
        return "cpu"
    index = int(options.device.partition(":")[2] or 0)
    if index >= cards:
        raise InvalidArgumentError(
            f"device {options.device!r} does not exist: this service has {cards} CUDA devices",
            field="options[device]",
        )
    return f"cuda:{index}"


def choose_dtype(options: LoadOptions, device: str) -> torch.dtype:
    """The torch dtype of an option: "auto" is float32 on the CPU and bfloat16 on CUDA."""
    if options.dtype == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, options.dtype)
    return dtype


def load_model(
    auto_class: Any,
    folder: Path,
    *,
    dtype: torch.dtype | None,
    device: str = "cpu",
    is_used: Callable[[str], bool] = lambda name: True,
    **options: Any,
) -> Any:
    """A model of safetensors, ready for inference: offline, without code of the model's own.

    Args:
        auto_class: a class of transformers with `from_pretrained`.
        folder: config and weights.
        dtype: of the weights; None keeps that of the files.
        device: "cpu" or "cuda:N".
        is_used: whether the tensor of a name may not be missing.
        options: more arguments of `from_pretrained`.

    Raises:
        InvalidModelError: weights are missing, or config.json asks for more than the files have.
        OSError, ValueError: transformers cannot read the files.
    """
    with bounded_by_files(folder):
        model, info = auto_class.from_pretrained(
            folder,
            dtype=dtype or "auto",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    # transformers would fill these with random numbers.
    if missing := sorted(filter(is_used, info["missing_keys"])):
        raise InvalidModelError(f"the weights lack {len(missing)} tensors, such as {missing[0]}")
    return model.eval().to(device)


class Pretrained:
    """Reads a model's folder with transformers: offline, without code of the model's own.

    Args:
        folder: config, weights, tokenizer and the like.
        options: device, dtype and the maximum length of a text.

    Raises:
        InvalidArgumentError: as `choose_device`.
    """

    def __init__(self, folder: Path, options: LoadOptions) -> None:
        self.folder = folder
        self.device = choose_device(options)
        self.dtype = choose_dtype(options, self.device)
        self._max_length = options.max_length

    def read(self, auto_class: Any, **options: Any) -> Any:
        """A processor or a config; a processor's tokenizer is that of `load_tokenizer`."""
        read_processors_tokenizers_here()
        return auto_class.from_pretrained(
            self.folder, local_files_only=True, trust_remote_code=False, **options
        )

    def model(self, auto_class: Any) -> Any:
        """A model on the chosen device, in the chosen dtype. Raises what `load_model` does."""
        return load_model(auto_class, self.folder, dtype=self.dtype, device=self.device)

    def tokenizer(self, model: Any) -> Any:
        """The tokenizer of texts for a model: with the inputs and the length that it takes.

        Raises what `load_tokenizer` does.
        """
        tokenizer = load_tokenizer(self.folder)
        set_inputs(tokenizer, self.folder, model)
        return self.truncate_to_model(tokenizer, model)

    def truncate_to_model(self, tokenizer: Any, model: Any) -> Any:
        """Sets a tokenizer's limit to what a model reads; returns the tokenizer."""
        limit = max_positions(model, _reader_config(model.config)) or NO_LIMIT
        own = min(tokenizer.model_max_length, limit)
        tokenizer.model_max_length = min(own, self._max_length or own)
        return tokenizer


def max_positions(model: Any, config: Any = None) -> int | None:
    """Tokens that a model can hold; None where its config sets no limit.

    Args:
        model: on torch.
        config: of the part that is asked for; None is the whole model.
    """
    for name in _POSITIONS:
        limit = getattr(config or model.config, name, None)
        if limit and limit > 0:  # XLNet has -1, which is none
            return int(limit) - _first_position(model)
    return None


def decoder_positions(model: Any) -> int | None:
    """Tokens that a model's decoder can hold, those of the prompt that it reads included."""
    config = model.config.get_text_config(decoder=True)
    return getattr(config, _DECODER_POSITIONS, None) or max_positions(model, config)


def _first_position(model: Any) -> int:
    """The position of a text's first token.

    RoBERTa and its relatives count positions from the one after the padding token's, and so have
    that many less for a text. Their tables of positions are the ones that know of padding.
    """
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, torch.nn.Embedding) and table.padding_idx is not None:
            return table.padding_idx + 1
    return 0


def _reader_config(config: Any) -> Any:
    """The config of the part of a model that reads texts."""
    if isinstance(encoder := getattr(config, "encoder", None), PreTrainedConfig):
        return encoder
    return getattr(config, "text_config", None) or config


def context_length(model: Any, max_length: int | None = None, config: Any = None) -> int:
    """Tokens of prompt and answer together, or of an encoder's prompt.

    Args:
        model: on torch.
        max_length: a lower limit that a caller has asked for.
        config: see `max_positions`.
    """
    own = max_positions(model, config) or DEFAULT_CONTEXT
    return min(own, max_length or own)


def end_tokens_of(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the generation config's, else the tokenizer's.

    Some models have none, or one below 0, which stands for none: their answers end by length.
    """
    named = model.generation_config.eos_token_id
    ends = [
        token
        for token in (named if isinstance(named, list | tuple) else [named])
        if is_token(token)
    ]
    if ends:
        return ends
    own = tokenizer.eos_token_id
    # A tokenizer gives the unknown token's id to an end token that it does not have.
    missing = own == tokenizer.unk_token_id and tokenizer.eos_token != tokenizer.unk_token
    return [own] if is_token(own) and not missing else []


def is_token(value: Any) -> bool:
    """Whether a value of a configuration is the id of a token."""
    return isinstance(value, int) and value >= 0


def measure(model: torch.nn.Module, packed_bytes: int = 0, cache_bytes: int = 0) -> WorkerReport:
    """Bytes of parameters and buffers, each shared one once, and those that accelerators hold.

    Args:
        model: on one kind of device, if there are other bytes.
        packed_bytes: of weights that the model has in another form besides.
        cache_bytes: of a key-value cache, which an accelerator holds from the start.
    """
    sizes: dict[tuple[str, int], int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        sizes[tensor.device.type, tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    weights = sum(sizes.values()) + packed_bytes
    vram = sum(size for (kind, _), size in sizes.items() if kind != "cpu")
    if vram:
        vram += packed_bytes + cache_bytes
    return WorkerReport(weights_bytes=weights, vram_bytes=vram)
