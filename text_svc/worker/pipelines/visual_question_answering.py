"""Answers to questions about an image: ViLT chooses one of its labels, BLIP writes."""

from __future__ import annotations

import threading
from typing import Any

import torch
from pydantic import Field
from transformers import AutoModelForVisualQuestionAnswering

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from text_svc.processes.specs import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.infer.answers import required_question
from text_svc.worker.infer.base import GenerateOptions, InferPipeline
from text_svc.worker.infer.labels import label_names, scored
from text_svc.worker.infer.options import NoOptions
from text_svc.worker.media.processors import read_processor


class ChoiceOptions(NoOptions):
    """How many of the best answers to return."""

    top_k: int = Field(5, ge=1)


class VisualAnswerer(InferPipeline[Any]):
    """An image and a question to labels, whose scores are sigmoids as in transformers; or to text.

    Raises:
        InvalidModelError: the model's config does not name its labels.
    """

    takes = ("image",)
    auto_class = AutoModelForVisualQuestionAnswering

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._writes = bool(self.model.can_generate())
        self.options = GenerateOptions if self._writes else ChoiceOptions
        self._names = [] if self._writes else label_names(self.model.config)

    def read_processor(self, source: Pretrained) -> Any:
        processor = read_processor(source)
        source.truncate_to_model(processor.tokenizer, self.model)
        return processor

    def infer(
        self, request: pb.InferRequest, options: Any, cancelled: threading.Event
    ) -> pb.InferResponse:
        question = required_question(request.prompt)
        inputs = self.processor(images=self.image(request), text=question, return_tensors="pt")
        tokens, limit = inputs["input_ids"].shape[1], self.processor.tokenizer.model_max_length
        if tokens > limit:
            raise InvalidArgumentError(
                f"prompt has {tokens} tokens; the model's limit is {limit}",
                field="prompt",
                metadata={"limit": str(limit)},
            )
        if not self._writes:
            logits: torch.Tensor = self.forward(inputs)[0].float().cpu()
            labels = scored(self._names, logits, logits.sigmoid(), options.top_k)
            return pb.InferResponse(labels=labels)
        ids = self.generate(inputs, options, cancelled)
        text = self.processor.decode(ids, skip_special_tokens=True)
        return pb.InferResponse(text=text.strip())
