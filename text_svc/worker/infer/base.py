"""The base of the pipelines behind `Infer`: one validated request, answered in the model's thread.

The messages of the wire are the types here: a second set of classes would copy each of them.
"""

from __future__ import annotations

import abc
import threading
from typing import Any, ClassVar, Generic, TypeVar

import torch
from PIL import Image
from pydantic import Field
from transformers import AutoProcessor

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from text_svc.link.server import Handlers
from text_svc.processes.specs import WorkerReport, WorkerSpec
from text_svc.torch_models.pretrained import NO_LIMIT, Pretrained, decoder_positions, measure
from text_svc.worker.cancel import cancel_processor
from text_svc.worker.infer.options import NoOptions
from text_svc.worker.infer.service import InferHandlers
from text_svc.worker.media.decode import Samples, decode_audio, decode_image
from text_svc.worker.tokenizing import watch_transformers


class GenerateOptions(NoOptions):
    """Options of pipelines that generate; greedy unless a temperature is set."""

    max_new_tokens: int = Field(256, ge=1, le=4096)
    num_beams: int = Field(1, ge=1, le=16)
    temperature: float = Field(0.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)

    def sampling(self) -> dict[str, Any]:
        """Arguments of `generate` that say how it chooses the next token."""
        if not self.temperature:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}

    def arguments(
        self, model: Any, cancelled: threading.Event, prompt_tokens: int = 0
    ) -> dict[str, Any]:
        """Arguments of `generate`, which raises CallCancelledError once `cancelled` is set.

        Args:
            model: its decoder's size limits the new tokens.
            cancelled: set when the caller has gone.
            prompt_tokens: tokens that the decoder reads before its first.

        Raises:
            InvalidArgumentError: the prompt leaves no room for an answer.
        """
        limit = decoder_limit(model)
        room = limit - prompt_tokens - 1
        if room < 1:
            raise InvalidArgumentError(
                f"the prompt and its image have {prompt_tokens} tokens; the model's limit is "
                f"{limit}, generated tokens included",
                field="prompt",
            )
        return {
            "max_new_tokens": min(self.max_new_tokens, room),
            "num_beams": self.num_beams,
            "logits_processor": cancel_processor(cancelled),
            **self.sampling(),
        }


def decoder_limit(model: Any) -> int:
    """Tokens that a model's decoder can hold, those of the prompt that it reads included."""
    return decoder_positions(model) or NO_LIMIT


Options = TypeVar("Options", bound=NoOptions)


class InferPipeline(abc.ABC, Generic[Options]):
    """One loaded model behind `Infer`.

    A subclass names the classes of transformers that read it, or overrides `read_model` and
    `read_processor`.

    Attributes:
        takes: the fields of InferRequest's `input` that it can read.
        options: the class of a request's options.
        auto_class: reads the model; None for a pipeline without one.
        processor_class: reads the processor.
        model: on torch, or None.
        processor: turns a request into the model's inputs.

    Args:
        spec: the folder, the load options and the limits.

    Raises:
        ServiceError, OSError, ValueError: the model cannot be loaded.
    """

    takes: tuple[str, ...]
    options: type[NoOptions] = NoOptions
    auto_class: ClassVar[Any] = None
    processor_class: ClassVar[Any] = AutoProcessor

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        watch_transformers()
        source = Pretrained(spec.folder, spec.options)
        self.model: Any = self.read_model(source)
        self.processor: Any = self.read_processor(source)

    def read_model(self, source: Pretrained) -> Any:
        """The model, ready for inference."""
        return source.model(self.auto_class) if self.auto_class else None

    def read_processor(self, source: Pretrained) -> Any:
        """The processor; `model` is there already."""
        return source.read(self.processor_class)

    @abc.abstractmethod
    def infer(
        self, request: pb.InferRequest, options: Options, cancelled: threading.Event
    ) -> pb.InferResponse:
        """Answers a request whose input is one of `takes`. Blocks; runs in one thread.

        Raises:
            ServiceError: the request cannot be answered.
        """

    def handlers(self) -> Handlers:
        """What answers the model's RPCs; pipelines that have more than Infer add them."""
        return InferHandlers(self, self.spec).table()

    def report(self) -> WorkerReport:
        """What the model was measured to cost."""
        return WorkerReport() if self.model is None else measure(self.model)

    def image(self, request: pb.InferRequest) -> Image.Image:
        """The request's image, decoded."""
        return decode_image(request.image.data, self.spec.max_image_pixels)

    def audio(self, request: pb.InferRequest, rate: int) -> Samples:
        """The request's sound at `rate` samples a second."""
        return decode_audio(request.audio, rate, self.spec.max_audio_seconds)

    def whole_sound(self, request: pb.InferRequest, rate: int) -> Samples:
        """The request's sound, for a model that reads all of it at once."""
        limit = min(self.spec.max_audio_seconds, self.spec.max_whole_sound_seconds)
        return decode_audio(request.audio, rate, limit)

    def forward(self, inputs: Any) -> torch.Tensor:
        """The logits of a batch."""
        with torch.inference_mode():
            logits: torch.Tensor = self.model(**self.to_model(inputs)).logits
        return logits

    def generate(
        self,
        inputs: Any,
        options: GenerateOptions,
        cancelled: threading.Event,
        *,
        prompt_tokens: int = 0,
        **arguments: Any,
    ) -> torch.Tensor:
        """Token ids of one answer, shape (tokens,).

        Args:
            inputs: of the processor.
            options: of the request.
            cancelled: set when the caller has gone.
            prompt_tokens: see `GenerateOptions.arguments`.
            arguments: more of them for the model's `generate`.

        Raises:
            CallCancelledError: the caller has gone.
        """
        arguments |= options.arguments(self.model, cancelled, prompt_tokens)
        with torch.inference_mode():
            ids: torch.Tensor = self.model.generate(**self.to_model(inputs), **arguments)
        return ids[0]

    def to_model(self, inputs: Any) -> dict[str, Any]:
        """Tensors on the model's device, floats in its dtype."""
        return {
            name: value.to(
                self.model.device, self.model.dtype if value.is_floating_point() else None
            )
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }


class TextPipeline(InferPipeline[Options]):
    """A model that takes only texts; its processor is a tokenizer that can truncate them."""

    def read_processor(self, source: Pretrained) -> Any:
        return source.tokenizer(self.model)
