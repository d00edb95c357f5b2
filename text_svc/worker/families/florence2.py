"""Florence-2: what is asked of an image is a task prompt, such as "<OCR>" or "<OD>"."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from text_svc.launch import Launch
from text_svc.worker.families import Loaded
from text_svc.worker.infer_service import load_family
from text_svc.worker.inference import Family, GenerateOptions, Pretrained


class Florence2(Family[GenerateOptions]):
    """The prompt is a task, with the text that some tasks take after it."""

    takes = ("image",)
    options = GenerateOptions

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch)
        source = Pretrained(launch)
        self.model = source.model(AutoModelForImageTextToText)
        self._processor = source.read(AutoProcessor)
        self._tasks = tuple(self._processor.tasks_answer_post_processing_type)

    def infer(
        self, request: pb.InferRequest, options: GenerateOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        task = next((task for task in self._tasks if request.prompt.startswith(task)), None)
        if task is None:
            raise InvalidArgumentError(
                f"prompt {request.prompt[:40]!r} begins with no task; known are "
                f"{', '.join(self._tasks)}",
                field="prompt",
            )
        image = self.image(request)
        inputs = self._processor(text=request.prompt, images=image, return_tensors="pt")
        ids = self.generate(inputs, options, cancelled)
        text = self._processor.decode(ids, skip_special_tokens=False)
        answer = self._processor.post_process_generation(text, task=task, image_size=image.size)
        return _response(answer[task], image)


def _response(answer: Any, image: Image.Image) -> pb.InferResponse:
    """A text, or regions with the labels as text too."""
    if isinstance(answer, str):
        return pb.InferResponse(text=answer.strip())
    regions = list(_regions(answer, image))
    labels = [region.label for region in regions if region.label]
    return pb.InferResponse(text="\n".join(labels), regions=regions)


def _regions(answer: dict[str, Any], image: Image.Image) -> Iterator[pb.ImageRegion]:
    """Boxes and polygons; the processor names them in three ways."""
    labels = answer.get("labels") or answer.get("bboxes_labels") or []
    boxes = answer.get("bboxes") or answer.get("quad_boxes") or []
    for label, box in zip(labels, boxes, strict=False):
        yield pb.ImageRegion(label=label, points=_scaled(box, image))
    names = answer.get("polygons_labels") or answer.get("labels") or []
    for label, polygons in zip(names, answer.get("polygons") or [], strict=False):
        for polygon in polygons:
            yield pb.ImageRegion(label=label, points=_scaled(polygon, image))


def _scaled(points: Sequence[float], image: Image.Image) -> list[float]:
    """x and y in turn, in pixels, to parts of width and height."""
    return [value / image.size[place % 2] for place, value in enumerate(points)]


def load(launch: Launch) -> Loaded:
    """See `families.load`."""
    return load_family(launch, Florence2)
