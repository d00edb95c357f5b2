"""What every family behind `Infer` is: it takes a checked request and answers it, in a thread.

The messages of the wire are the types here: a second set of classes would copy each of them.
"""

from __future__ import annotations

import abc
import threading
from typing import Any, ClassVar, Generic, TypeVar

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from text_svc.processes.launch import WorkerReport, WorkerSpec
from text_svc.torch_models.pretrained import NO_LIMIT, max_positions, measure
from text_svc.worker.cancel import cancel_processor, raise_if_cancelled
from text_svc.worker.length_batches import length_batches
from text_svc.worker.media.decode import Samples, decode_audio, decode_image


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
        limit = max_positions(model.config.get_text_config(decoder=True)) or NO_LIMIT
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
            "logits_processor": cancel_processor(cancelled),
        }


def answer_room(model: Any, prompt_tokens: int = 0) -> int:
    """New tokens that a model's decoder can hold after those that it reads before its first."""
    limit = max_positions(model.config.get_text_config(decoder=True)) or NO_LIMIT
    return limit - prompt_tokens - 1


Options = TypeVar("Options", bound=NoOptions)


class Family(abc.ABC, Generic[Options]):
    """One loaded model.

    Attributes:
        takes: the fields of InferRequest's `input` that it can read.
        options: the class of a request's options.
        model: on torch, or None.
    """

    takes: tuple[str, ...]
    options: ClassVar[type[NoOptions]] = NoOptions

    def __init__(self, launch: WorkerSpec) -> None:
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

    def report(self) -> WorkerReport:
        """What the model was measured to cost."""
        return WorkerReport() if self.model is None else measure(self.model)

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
            raise_if_cancelled(cancelled)
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
