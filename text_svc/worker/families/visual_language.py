"""Language models that see: an image and a question to an answer. LLaVA, SmolVLM, Qwen2-VL."""

from __future__ import annotations

import threading
from typing import ClassVar

from transformers import AutoModelForImageTextToText, AutoProcessor

from ml import transformers_pb2 as pb
from shared.errors import MissingFieldError
from text_svc.launch import Launch
from text_svc.worker.families import Loaded
from text_svc.worker.infer_service import load_family
from text_svc.worker.inference import Family, GenerateOptions, Pretrained


class VisualLanguageModel(Family[GenerateOptions]):
    """The prompt is put into the model's own chat template, if it has one."""

    takes: ClassVar[tuple[str, ...]] = ("image",)
    options = GenerateOptions

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch)
        source = Pretrained(launch)
        self.model = source.model(AutoModelForImageTextToText)
        self.processor = source.read(AutoProcessor)
        self._image_token = str(getattr(self.processor, "image_token", "<image>"))

    def infer(
        self, request: pb.InferRequest, options: GenerateOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        if not request.prompt:
            raise MissingFieldError("prompt is empty", field="prompt")
        inputs = self.processor(
            text=self._text(request.prompt), images=self.image(request), return_tensors="pt"
        )
        prompt_tokens = inputs["input_ids"].shape[1]
        ids = self.generate(inputs, options, cancelled, prompt_tokens=prompt_tokens)
        text = self.processor.decode(ids[prompt_tokens:], skip_special_tokens=True)
        return pb.InferResponse(text=text.strip())

    def rendered(self, content: list[dict[str, str]]) -> str:
        """What a user says, in the model's chat template; empty where it has none."""
        if not getattr(self.processor, "chat_template", None):
            return ""
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return text

    def _text(self, prompt: str) -> str:
        text = self.rendered([{"type": "image"}, {"type": "text", "text": prompt}])
        if text or self._image_token in prompt:
            return text or prompt
        return f"{self._image_token}\n{prompt}"


def load(launch: Launch) -> Loaded:
    """See `families.load`."""
    return load_family(launch, VisualLanguageModel)
