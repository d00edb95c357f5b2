"""What every family behind `Infer` is: it takes a checked request and answers it, in a thread.

The messages of the wire are the types here: a second set of classes would copy each of them.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoTokenizer, NllbTokenizer, StoppingCriteria, StoppingCriteriaList

from ml import transformers_pb2 as pb
from shared.errors import (
    CallCancelledError,
    InvalidArgumentError,
    InvalidModelError,
)
from text_svc.processes.launch import (
    Launch,
    Report,
)
from text_svc.torch_models.causal_lm import (
    choose_device,
    choose_dtype,
    measure,
)
from text_svc.worker.length_batches import length_batches
from text_svc.worker.media.decode import (
    Samples,
    decode_audio,
    decode_image,
)
from text_svc.worker.tokenizers.fast import (
    CONFIG,
    read_json,
)

# Short texts that a model reads at once; thousands would need gigabytes.
TEXTS_AT_ONCE = 128
# A tokenizer without a limit of its own says int(1e30).
NO_LIMIT = 1 << 20


class NoOptions(BaseModel):
    """Options of a request, as families without any take them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LabelOptions(NoOptions):
    """Options of what gives labels."""

    # The best so many labels; 0 is all of them.
    top_k: int = Field(0, ge=0)


class GenerateOptions(NoOptions):
    """Options of what generates; greedy unless a temperature is set."""

    max_new_tokens: int = Field(256, ge=1, le=4096)
    num_beams: int = Field(1, ge=1, le=16)
    temperature: float = Field(0.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)

    def arguments(
        self, model: Any, cancelled: threading.Event, prompt_tokens: int = 0
    ) -> dict[str, Any]:
        """What `generate` takes; it fails after the token during which `cancelled` is set.

        Args:
            model: bounds the new tokens by what its decoder can hold.
            cancelled: set when the caller has gone.
            prompt_tokens: what the decoder reads before its first token.

        Raises:
            InvalidArgumentError: the prompt leaves no room for an answer.
        """
        limit = positions(model.config.get_text_config(decoder=True)) or NO_LIMIT
        room = answer_room(model, prompt_tokens)
        if room < 1:
            raise InvalidArgumentError(
                f"the prompt and its image have {prompt_tokens} tokens; with the answer the model "
                f"holds {limit}",
                field="prompt",
            )
        sampling = {"temperature": self.temperature, "top_p": self.top_p}
        return {
            "max_new_tokens": min(self.max_new_tokens, room),
            "num_beams": self.num_beams,
            "do_sample": self.temperature > 0,
            **(sampling if self.temperature else {}),
            "stopping_criteria": ending_when(cancelled),
        }


def positions(config: Any) -> int | None:
    """Tokens that a model can hold; None where its config sets no limit."""
    for name in ("max_position_embeddings", "max_target_positions"):
        if limit := getattr(config, name, None):
            return int(limit)
    return None


def answer_room(model: Any, prompt_tokens: int = 0) -> int:
    """New tokens that a model's decoder can hold after those that it reads before its first."""
    limit = positions(model.config.get_text_config(decoder=True)) or NO_LIMIT
    return limit - prompt_tokens - 1


Options = TypeVar("Options", bound=NoOptions)


class Pretrained:
    """Reads what a folder holds with transformers: from safetensors, offline, without its code.

    Args:
        launch: the folder, device, dtype and limit of a text.
    """

    def __init__(self, launch: Launch) -> None:
        self.folder: Path = launch.folder
        self.device = choose_device(launch.options)
        self.dtype = choose_dtype(launch.options, self.device)
        self._max_length = launch.options.max_length

    def read(self, kind: Any, **options: Any) -> Any:
        """A tokenizer, a processor or a config."""
        return kind.from_pretrained(
            self.folder, local_files_only=True, trust_remote_code=False, **options
        )

    def model(self, kind: Any) -> Any:
        """A model, ready for inference.

        Raises:
            InvalidModelError: weights are missing.
        """
        model, found = self.read(
            kind, dtype=self.dtype, use_safetensors=True, output_loading_info=True
        )
        if missing := sorted(found["missing_keys"]):
            # transformers would fill them with random numbers.
            raise InvalidModelError(
                f"the weights lack {len(missing)} tensors, such as {missing[0]}"
            )
        return model.eval().to(self.device)

    def tokenizer(self, config: Any) -> Any:
        """A tokenizer that cuts texts to what the model of `config` can read."""
        named = str(read_json(self.folder / CONFIG).get("tokenizer_class")).removesuffix("Fast")
        # NLLB's has the model type of M2M100, and AutoTokenizer then forgets its languages.
        kind = NllbTokenizer if named == NllbTokenizer.__name__ else AutoTokenizer
        return self.cut(self.read(kind), config)

    def cut(self, tokenizer: Any, config: Any) -> Any:
        """Makes a tokenizer cut texts to what the model of `config` can read; returns it."""
        own, limit = tokenizer.model_max_length, positions(config) or NO_LIMIT
        # RoBERTa's kin count positions from 2; where their tokenizer says so, it is believed.
        own = min(own, limit) if own <= NO_LIMIT else limit - 2
        tokenizer.model_max_length = min(own, self._max_length or own)
        return tokenizer


class Family(abc.ABC, Generic[Options]):
    """One loaded model.

    Attributes:
        takes: the fields of InferRequest's `input` that it can read.
        options: the class of a request's options.
        model: on torch, or None.
    """

    takes: tuple[str, ...]
    options: ClassVar[type[NoOptions]] = NoOptions

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.model: Any = None

    @abc.abstractmethod
    def infer(
        self, request: pb.InferRequest, options: Options, cancelled: threading.Event
    ) -> pb.InferResponse:
        """Answers a request whose input is one of `takes`. Blocks; runs in one thread.

        Raises:
            ServiceError: the request cannot be answered.
        """

    def report(self) -> Report:
        """What the model was measured to cost."""
        return Report() if self.model is None else measure(self.model)

    def image(self, request: pb.InferRequest) -> Image.Image:
        """The request's image, decoded."""
        return decode_image(request.image.data, self.launch.max_image_pixels)

    def audio(self, request: pb.InferRequest, rate: int) -> Samples:
        """The request's sound at `rate`."""
        return decode_audio(request.audio, rate, self.launch.max_audio_seconds)

    def generate(
        self,
        inputs: Any,
        options: GenerateOptions,
        cancelled: threading.Event,
        *,
        prompt_tokens: int = 0,
        **arguments: Any,
    ) -> torch.Tensor:
        """Token ids of one answer, shape (tokens,). The arguments are as of `GenerateOptions`.

        Raises:
            CallCancelledError: the caller has gone; what was generated is of no use.
        """
        arguments |= options.arguments(self.model, cancelled, prompt_tokens)
        with torch.inference_mode():
            ids: torch.Tensor = self.model.generate(**self.to_model(inputs), **arguments)
        return ids[0]

    def logits(self, tokenizer: Any, encoded: Any, cancelled: threading.Event) -> torch.Tensor:
        """Logits of encoded texts, shape (texts, labels), in batches of texts of like length.

        Args:
            tokenizer: that made `encoded`, lists of token ids and what goes with them.
            cancelled: ends the work before the next batch.

        Raises:
            CallCancelledError: the caller has gone.
        """
        rows = torch.empty(len(encoded["input_ids"]), self.model.config.num_labels)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        for batch in length_batches(lengths, streams=1):
            end_if(cancelled)
            texts = {name: [values[index] for index in batch] for name, values in encoded.items()}
            inputs = tokenizer.pad(texts, return_tensors="pt")
            with torch.inference_mode():
                rows[batch] = self.model(**self.to_model(inputs)).logits.float().cpu()
        return rows

    def to_model(self, inputs: Any) -> dict[str, Any]:
        """Tensors on the model's device, floats in its dtype."""
        return {
            name: value.to(
                self.model.device, self.model.dtype if value.is_floating_point() else None
            )
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }


class _Ended(StoppingCriteria):
    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        end_if(self._cancelled)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def ending_when(cancelled: threading.Event) -> StoppingCriteriaList:
    """Ends `generate` after the token during which the event is set, as `end_if` does.

    By an error: Whisper's would go on with the next 30 seconds.
    """
    return StoppingCriteriaList([_Ended(cancelled)])


def end_if(cancelled: threading.Event) -> None:
    """Ends the work of a caller who has gone.

    Raises:
        CallCancelledError: the event is set.
    """
    if cancelled.is_set():
        raise CallCancelledError("the call was cancelled")


def in_parts(texts: list[str], cancelled: threading.Event) -> Iterator[list[str]]:
    """Texts, as many at once as a model is given; ends as `end_if` when the caller has gone."""
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        end_if(cancelled)
        yield texts[start : start + TEXTS_AT_ONCE]
