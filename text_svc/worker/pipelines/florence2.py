"""Florence-2: what to do with an image is a task in the prompt, such as "<OCR>" or "<OD>"."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from PIL import Image
from transformers import AutoModelForImageTextToText

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from text_svc.link.server import Handlers
from text_svc.processes.specs import WorkerSpec
from text_svc.torch_models.pretrained import context_length, end_tokens_of
from text_svc.worker.generation.generator import Prompt, TextGenerator
from text_svc.worker.generation.service import GenerationHandlers
from text_svc.worker.infer.base import GenerateOptions, InferPipeline, decoder_limit
from text_svc.worker.infer.service import InferHandlers
from text_svc.worker.infer.streaming import text_generator
from text_svc.worker.media.decode import decode_image
from text_svc.worker.model_thread import ModelThread
from text_svc.worker.tokenizers.slow import SlowTokenizer

# The processor rounds points to whole pixels; on an image of this size nothing is lost.
_SIDE = 1_000_000


class Florence2(InferPipeline[GenerateOptions]):
    """The prompt is a task, followed by a text for some tasks."""

    takes = ("image",)
    options = GenerateOptions
    auto_class = AutoModelForImageTextToText

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._tasks: dict[str, str] = self.processor.tasks_answer_post_processing_type
        # Infer and GenerateText have a thread each, and the processor is not thread-safe.
        self._lock = threading.Lock()

    def handlers(self) -> Handlers:
        return Florence2Handlers(self, self._generator(), self.spec).table()

    def infer(
        self, request: pb.InferRequest, options: GenerateOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        task = self.task_of(request.prompt)
        inputs = self.encode(request.prompt, self.image(request))
        ids = self.generate(inputs, options, cancelled)
        return self.answer(task, self.processor.decode(ids, skip_special_tokens=False))

    def task_of(self, prompt: str) -> str:
        """The task that a prompt begins with.

        Raises:
            InvalidArgumentError: it begins with none of the model's tasks.
        """
        for task in self._tasks:
            if prompt.startswith(task):
                return task
        raise InvalidArgumentError(
            f"prompt {prompt[:40]!r} must begin with one of {', '.join(self._tasks)}",
            field="prompt",
        )

    def answers_text(self, task: str) -> bool:
        """Whether the answer is the model's text itself, and not regions parsed out of it."""
        return self._tasks[task] == "pure_text"

    def encode(self, prompt: str, image: Image.Image) -> dict[str, Any]:
        """The inputs of `generate`.

        Raises:
            InvalidArgumentError: the task takes no text, or not this one.
        """
        if self.processor.image_token in prompt:
            raise InvalidArgumentError(
                f"the prompt must not contain {self.processor.image_token}; the image is placed "
                "automatically",
                field="prompt",
            )
        try:
            with self._lock:
                inputs = self.processor(text=prompt, images=image, return_tensors="pt")
        except ValueError as error:
            raise InvalidArgumentError(str(error)[:300], field="prompt") from None
        return self.to_model(inputs)

    def answer(self, task: str, text: str) -> pb.InferResponse:
        """The answer in what the model wrote: a text, or regions with their labels as the text."""
        size = (_SIDE, _SIDE)
        found = self.processor.post_process_generation(text, task=task, image_size=size)[task]
        if isinstance(found, str):
            return pb.InferResponse(text=found.strip())
        regions = list(_regions(found))
        labels = [region.label for region in regions if region.label]
        return pb.InferResponse(text="\n".join(labels), regions=regions)

    def _generator(self) -> TextGenerator:
        own = self.processor.tokenizer
        config = self.model.config.get_text_config()
        return text_generator(
            self.model,
            # Only these are left out: its places, such as <loc_7>, are special tokens as well in
            # some of its tokenizers.
            SlowTokenizer(own, (own.bos_token_id, own.eos_token_id, own.pad_token_id)),
            end_tokens_of(self.model, own),
            self.spec,
            context=context_length(self.model, self.spec.options.max_length, config),
            new_tokens=decoder_limit(self.model) - 1,
            greedy=True,
        )


class Florence2Handlers(GenerationHandlers):
    """Infer, and GenerateText, which streams where the answer is the text that the model writes."""

    def __init__(self, pipeline: Florence2, generator: TextGenerator, spec: WorkerSpec) -> None:
        super().__init__(generator, spec)
        self._model = pipeline
        self._max_pixels = spec.max_image_pixels
        self._thread = ModelThread(spec.max_waiting_calls, weights=spec.caller_weights)
        self._infer = InferHandlers(pipeline, spec)

    def table(self) -> Handlers:
        return {"GenerateText": self.generate_text, "Infer": self._infer.infer}

    async def generate_text(self, request: pb.TextRequest) -> AsyncGenerator[pb.TextResponse, None]:
        task, text = self._model.task_of(request.prompt), ""
        if request.n > 1:
            raise InvalidArgumentError(
                f"n is {request.n}; Florence-2 gives one answer, so it must be 1 or absent",
                field="n",
            )
        async with aclosing(super().generate_text(request)) as responses:
            if self._model.answers_text(task):
                async for response in responses:
                    yield response
                return
            async for response in responses:
                text += response.text
        answer = self._model.answer(task, text)
        if answer.text:
            yield pb.TextResponse(text=answer.text, tokens_generated=response.tokens_generated)
        response.regions.extend(answer.regions)
        yield response

    async def read_text(self, request: pb.TextRequest) -> Prompt:
        if len(request.images) != 1 or request.audio:
            raise InvalidArgumentError(
                f"Florence-2 takes one image; the request has {len(request.images)} and "
                f"{len(request.audio)} sounds",
                field="images",
            )

        def read(_: Any) -> dict[str, Any]:
            image = decode_image(request.images[0].data, self._max_pixels, "images[0]")
            return self._model.encode(request.prompt, image)

        inputs = await self._thread.run(read)
        return Prompt(inputs["input_ids"][0].tolist(), inputs)


def _regions(answer: dict[str, Any]) -> Iterator[pb.ImageRegion]:
    """Boxes and polygons; the processor names them in three ways."""
    labels = answer.get("labels") or answer.get("bboxes_labels") or []
    boxes = answer.get("bboxes") or answer.get("quad_boxes") or []
    for label, box in zip(labels, boxes, strict=False):
        yield pb.ImageRegion(label=label, points=_scaled(box))
    names = answer.get("polygons_labels") or answer.get("labels") or []
    for label, polygons in zip(names, answer.get("polygons") or [], strict=False):
        for polygon in polygons:
            yield pb.ImageRegion(label=label, points=_scaled(polygon))


def _scaled(points: Sequence[float]) -> list[float]:
    return [value / _SIDE for value in points]
