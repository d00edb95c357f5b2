"""Language models that take images or sounds: LLaVA, SmolVLM, Qwen2-VL, Qwen2-Audio and others."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image
from transformers import AutoModelForMultimodalLM, Gemma3Processor

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from text_svc.link.server import Handlers
from text_svc.processes.specs import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained, context_length, end_tokens_of
from text_svc.worker.generation.generator import Prompt, TextGenerator
from text_svc.worker.generation.service import GenerationHandlers
from text_svc.worker.infer.base import GenerateOptions, InferPipeline
from text_svc.worker.infer.service import InferHandlers, check_request
from text_svc.worker.infer.streaming import text_generator
from text_svc.worker.media.decode import Samples, decode_audio
from text_svc.worker.media.processors import read_processor
from text_svc.worker.media.prompts import MediaPrompts, MediaTokens
from text_svc.worker.tokenizers.base import Tokenizer
from text_svc.worker.tokenizers.chat_templates import chat_template, default_template
from text_svc.worker.tokenizers.fast import FastTokenizer
from text_svc.worker.tokenizers.slow import SlowTokenizer


class VisualLanguageModel(InferPipeline[GenerateOptions]):
    """Implements `media.prompts.MediaModel`. The prompt of a request has its media tokens."""

    options = GenerateOptions
    auto_class = AutoModelForMultimodalLM

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self.media_tokens = _media_tokens(self.processor)
        self.takes_images = hasattr(self.processor, "image_processor")
        self._feature_extractor = getattr(self.processor, "feature_extractor", None)
        taken = (("image", self.takes_images), ("audio", self._feature_extractor))
        self.takes = tuple(name for name, able in taken if able)
        # Infer and the other calls have a thread each, and the processor is not thread-safe.
        self._lock = threading.Lock()

    def read_processor(self, source: Pretrained) -> Any:
        return read_processor(source)

    @property
    def audio_rate(self) -> int:
        """See `MediaModel`."""
        return int(self._feature_extractor.sampling_rate) if self._feature_extractor else 0

    @property
    def max_sound_seconds(self) -> float:
        """See `MediaModel`; Whisper's feature extractor silently drops what is after its window."""
        return float(getattr(self._feature_extractor, "chunk_length", math.inf))

    def handlers(self) -> Handlers:
        tokenizer = self._answer_tokenizer()
        generator = text_generator(
            self.model,
            tokenizer,
            end_tokens_of(self.model, self.processor.tokenizer),
            self.spec,
            context=context_length(
                self.model,
                self.spec.options.max_length,
                self.model.config.get_text_config(decoder=True),
            ),
        )
        generator.check_template()
        templated = tokenizer.chat_template is not None
        prompts = MediaPrompts(self, generator.render, templated, self.spec)
        return MultimodalHandlers(self, generator, prompts, self.spec).table()

    def encode(self, text: str, images: list[Image.Image], sounds: list[Samples]) -> dict[str, Any]:
        """See `MediaModel`."""
        media: dict[str, Any] = {"images": [images]} if images else {}
        if sounds:
            media |= {"audio": sounds, "sampling_rate": self.audio_rate}
        start = self.processor.tokenizer.bos_token
        if start and text.startswith(start):  # as transformers, for a template that has written it
            media["add_special_tokens"] = False
        try:
            with self._lock:
                inputs = self.processor(text=[text], **media, return_tensors="pt")
        except (ValueError, IndexError) as error:
            raise InvalidArgumentError(
                f"the model's processor refuses the prompt: {str(error)[:300]}", field="prompt"
            ) from None
        return self.to_model(inputs)

    def infer(
        self, request: pb.InferRequest, options: GenerateOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        images, sounds = [], []
        if request.WhichOneof("input") == "audio":
            limit = min(self.spec.max_audio_seconds, self.max_sound_seconds)
            sounds.append(decode_audio(request.audio, self.audio_rate, limit))
        else:
            images.append(self.image(request))
        inputs = self.encode(request.prompt, images, sounds)
        prompt_tokens = inputs["input_ids"].shape[1]
        ids = self.generate(inputs, options, cancelled, prompt_tokens=prompt_tokens)
        text = self.processor.decode(ids[prompt_tokens:], skip_special_tokens=True)
        return pb.InferResponse(text=text.strip())

    def _answer_tokenizer(self) -> Tokenizer:
        """The model's tokenizer, with the processor's chat template."""
        own = self.processor.tokenizer
        tokenizer: Tokenizer
        tokenizer = FastTokenizer.of(own) if own.is_fast else SlowTokenizer(own)
        tokenizer.chat_template = (
            default_template(self.processor.chat_template)
            or default_template(own.chat_template)
            or chat_template(self.spec.folder)
        )
        tokenizer.special_tokens = {
            name: text for name, text in own.special_tokens_map.items() if isinstance(text, str)
        }
        return tokenizer


class MultimodalHandlers(GenerationHandlers):
    """Infer, GenerateText and ChatCompletion, whose prompts are all made by `MediaPrompts`."""

    def __init__(
        self,
        pipeline: VisualLanguageModel,
        generator: TextGenerator,
        prompts: MediaPrompts,
        spec: WorkerSpec,
    ) -> None:
        super().__init__(generator, spec)
        self._model = pipeline
        self._prompts = prompts
        self._spec = spec
        self._infer = InferHandlers(pipeline, spec)

    def table(self) -> Handlers:
        return {**super().table(), "Infer": self.infer}

    async def read_text(self, request: pb.TextRequest) -> Prompt:
        return await self._prompts.of_text(request)

    async def read_chat(self, request: pb.ChatRequest) -> Prompt:
        chat = self.chat_model.read(request)
        prompt = await self._prompts.of_chat(
            request.messages, chat.turns, partial(chat.render, self._generator.render)
        )
        return replace(prompt, answer=chat.answer)

    async def infer(self, request: pb.InferRequest) -> pb.InferResponse:
        """Places the media in the prompt, then as `InferHandlers`."""
        check_request(request, self._model, self._spec)
        await self._prompts.place_in(request)
        return await self._infer.infer(request)


def _media_tokens(processor: Any) -> MediaTokens:
    image = getattr(processor, "image_token", None)
    if isinstance(processor, Gemma3Processor):  # it alone looks for another token than this
        image = processor.boi_token
    return MediaTokens(str(image or ""), str(getattr(processor, "audio_token", None) or ""))
