"""Language models that see or hear: LLaVA, SmolVLM, Qwen2-VL, Qwen2-Audio and the like."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoModelForMultimodalLM, Gemma3Processor

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from text_svc.processes.launch import WorkerSpec
from text_svc.torch_models.pretrained import (
    Pretrained,
    context_length,
    end_tokens_of,
    loading_errors,
)
from text_svc.worker.engines.base import Limits
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.sampling import SamplingDefaults
from text_svc.worker.engines.transformers import (
    MAX_GENERATE,
    TransformersEngine,
)
from text_svc.worker.generation.generator import (
    AnswerTokenizer,
    TextGenerator,
)
from text_svc.worker.infer.base import Family, GenerateOptions
from text_svc.worker.loaded import LoadedPipeline
from text_svc.worker.media.decode import (
    Samples,
    decode_audio,
)
from text_svc.worker.media.processors import read_processor
from text_svc.worker.media.prompts import (
    Marks,
    MediaPrompts,
)
from text_svc.worker.pipelines.multimodal_service import MultimodalHandlers
from text_svc.worker.tokenizers.fast import TextTokenizer
from text_svc.worker.tokenizers.slow import WholeTokenizer


class VisualLanguageModel(Family[GenerateOptions]):
    """Implements `media_prompt.MediaModel`. A request's prompt comes with its marks."""

    options = GenerateOptions

    def __init__(self, launch: WorkerSpec) -> None:
        super().__init__(launch)
        source = Pretrained(launch.folder, launch.options)
        self.model = source.model(AutoModelForMultimodalLM)
        self.processor = read_processor(source)
        self.marks = _marks(self.processor)
        self.sees = hasattr(self.processor, "image_processor")
        self._ears = getattr(self.processor, "feature_extractor", None)
        self.takes = tuple(
            name for name, able in (("image", self.sees), ("audio", self._ears)) if able
        )
        # Infer and the other calls have a thread each, and the processor is made for one.
        self._turn = threading.Lock()

    @property
    def audio_rate(self) -> int:
        return int(self._ears.sampling_rate) if self._ears else 0

    @property
    def audio_seconds(self) -> float:
        """Whisper's way into a model cuts off, without a word, what comes after its window."""
        return float(getattr(self._ears, "chunk_length", math.inf))

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        config = self.model.config.get_text_config(decoder=True)
        return context_length(config, self.launch.options.max_length)

    def prepared(
        self, text: str, images: list[Image.Image], sounds: list[Samples]
    ) -> dict[str, Any]:
        """See `media_prompt.MediaModel`.

        Raises:
            InvalidArgumentError: the processor refuses them.
        """
        media: dict[str, Any] = {"images": [images]} if images else {}
        if sounds:
            media |= {"audio": sounds, "sampling_rate": self.audio_rate}
        start = self.processor.tokenizer.bos_token
        if start and text.startswith(start):  # as transformers does where a template has written it
            media["add_special_tokens"] = False
        try:
            with self._turn:
                inputs = self.processor(text=[text], **media, return_tensors="pt")
        except (ValueError, IndexError) as error:
            raise InvalidArgumentError(
                f"the model's processor refuses the prompt: {str(error)[:300]}", field="prompt"
            ) from None
        return self.to_model(inputs)

    def infer(
        self, request: pb.InferRequest, options: GenerateOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        heard = request.WhichOneof("input") == "audio"
        images = [] if heard else [self.image(request)]
        limit = min(self.launch.max_audio_seconds, self.audio_seconds)
        sounds = [decode_audio(request.audio, self.audio_rate, limit)] if heard else []
        inputs = self.prepared(request.prompt, images, sounds)
        prompt_tokens = inputs["input_ids"].shape[1]
        ids = self.generate(inputs, options, cancelled, prompt_tokens=prompt_tokens)
        text = self.processor.decode(ids[prompt_tokens:], skip_special_tokens=True)
        return pb.InferResponse(text=text.strip())


def _marks(processor: Any) -> Marks:
    image = getattr(processor, "image_token", None)
    if isinstance(processor, Gemma3Processor):  # the only one that looks for another than it says
        image = processor.boi_token
    return Marks(str(image or ""), str(getattr(processor, "audio_token", None) or ""))


def _tokenizer(folder: Path, processor: Any) -> AnswerTokenizer:
    """The model's, with the processor's chat template."""
    own = processor.tokenizer
    tokenizer: AnswerTokenizer
    if (folder / "tokenizer.json").exists():
        tokenizer = TextTokenizer(folder)
    else:
        tokenizer = WholeTokenizer(own)
    template = processor.chat_template or own.chat_template
    tokenizer.chat_template = template.get("default") if isinstance(template, dict) else template
    tokenizer.special_tokens = {
        name: text for name, text in own.special_tokens_map.items() if isinstance(text, str)
    }
    return tokenizer


def handlers_of(family: VisualLanguageModel, launch: WorkerSpec) -> MultimodalHandlers:
    """All calls of a loaded model."""
    metrics = EngineMetrics(launch.model_id)
    tokenizer = _tokenizer(launch.folder, family.processor)
    limits = Limits(family.context, min(MAX_GENERATE, launch.max_running), launch.max_waiting)
    end_tokens = end_tokens_of(family.model, family.processor.tokenizer)
    generator = TextGenerator(
        TransformersEngine(family.model, limits, end_tokens, metrics),
        tokenizer,
        SamplingDefaults.read(launch.folder),
        metrics,
        launch.max_prompt_bytes,
    )
    templated = tokenizer.chat_template is not None
    prompts = MediaPrompts(family, generator.render, templated, launch)
    return MultimodalHandlers(family, generator, prompts, launch)


def load(launch: WorkerSpec) -> LoadedPipeline:
    """See `pipelines.load`."""
    with loading_errors(launch):
        family = VisualLanguageModel(launch)
        return LoadedPipeline(handlers_of(family, launch).table(), family.report())
