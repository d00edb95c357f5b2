"""Florence-2: what is asked of an image is a task prompt, such as "<OCR>" or "<OD>"."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

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
from text_svc.worker.generation.generator import TextGenerator
from text_svc.worker.infer.base import Family, GenerateOptions, answer_room
from text_svc.worker.loaded import LoadedPipeline
from text_svc.worker.pipelines.florence2_service import Florence2Handlers
from text_svc.worker.tokenizers.slow import WholeTokenizer

# The processor rounds points to pixels: of an image this large, that takes nothing from them.
_SIDE = 1_000_000


class Florence2(Family[GenerateOptions]):
    """The prompt is a task, with the text that some tasks take after it."""

    takes = ("image",)
    options = GenerateOptions

    def __init__(self, launch: WorkerSpec) -> None:
        super().__init__(launch)
        source = Pretrained(launch.folder, launch.options)
        self.model = source.model(AutoModelForImageTextToText)
        self.processor = source.read(AutoProcessor)
        self._tasks: dict[str, str] = self.processor.tasks_answer_post_processing_type
        # Infer and GenerateText have a thread each, and the processor is made for one.
        self._turn = threading.Lock()

    def infer(
        self, request: pb.InferRequest, options: GenerateOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        task = self.task_of(request.prompt)
        inputs = self.prepared(request.prompt, self.image(request))
        ids = self.generate(inputs, options, cancelled)
        return self.answer(task, self.processor.decode(ids, skip_special_tokens=False))

    def task_of(self, prompt: str) -> str:
        """The task that a prompt begins with.

        Raises:
            InvalidArgumentError: none that the model knows.
        """
        for task in self._tasks:
            if prompt.startswith(task):
                return task
        raise InvalidArgumentError(
            f"prompt {prompt[:40]!r} begins with no task; known are {', '.join(self._tasks)}",
            field="prompt",
        )

    def gives_text(self, task: str) -> bool:
        """Whether the model's own words are the answer, and not what can be read out of them."""
        return self._tasks[task] == "pure_text"

    def prepared(self, prompt: str, image: Image.Image) -> dict[str, Any]:
        """What `generate` takes.

        Raises:
            InvalidArgumentError: the task takes no text after it, or not this one.
        """
        if self.processor.image_token in prompt:
            raise InvalidArgumentError(
                f"the prompt has {self.processor.image_token}; the image has its place without it",
                field="prompt",
            )
        try:
            with self._turn:
                inputs = self.processor(text=prompt, images=image, return_tensors="pt")
        except ValueError as error:
            raise InvalidArgumentError(str(error)[:300], field="prompt") from None
        return self.to_model(inputs)

    def answer(self, task: str, text: str) -> pb.InferResponse:
        """A text, or regions with the labels as text too, out of what the model has written."""
        size = (_SIDE, _SIDE)
        found = self.processor.post_process_generation(text, task=task, image_size=size)[task]
        if isinstance(found, str):
            return pb.InferResponse(text=found.strip())
        regions = list(_regions(found))
        labels = [region.label for region in regions if region.label]
        return pb.InferResponse(text="\n".join(labels), regions=regions)


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


def _generator(family: Florence2, launch: WorkerSpec) -> TextGenerator:
    """Greedy where neither the caller nor the model asks for chance, as Infer is."""
    metrics = EngineMetrics(launch.model_id)
    limits = Limits(
        context_length(family.model.config.get_text_config(), launch.options.max_length),
        min(MAX_GENERATE, launch.max_running),
        launch.max_waiting,
        new_tokens=answer_room(family.model),
    )
    own = family.processor.tokenizer
    engine = TransformersEngine(family.model, limits, end_tokens_of(family.model, own), metrics)
    defaults = SamplingDefaults.read(launch.folder)
    defaults = replace(defaults, temperature=defaults.temperature or 0.0)
    # Its places, such as <loc_7>, are special tokens in some of its tokenizers.
    tokenizer = WholeTokenizer(own, (own.bos_token_id, own.eos_token_id, own.pad_token_id))
    return TextGenerator(engine, tokenizer, defaults, metrics, launch.max_prompt_bytes)


def load(launch: WorkerSpec) -> LoadedPipeline:
    """See `pipelines.load`."""
    with loading_errors(launch):
        family = Florence2(launch)
        handlers = Florence2Handlers(family, _generator(family, launch), launch)
        return LoadedPipeline(handlers.table(), family.report())
