"""Objects in images, out of the labels that the model was trained with: DETR and its relatives."""

from __future__ import annotations

import threading

from transformers import AutoModelForObjectDetection

from ml import transformers_pb2 as pb
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.infer.images import ImagePipeline
from text_svc.worker.infer.labels import label_names
from text_svc.worker.infer.regions import DetectionOptions, corners

# The one of transformers' pipeline.
THRESHOLD = 0.5


class ObjectDetector(ImagePipeline[DetectionOptions]):
    """An image to labels with scores and boxes, the best first.

    Raises:
        InvalidModelError: the model's config does not name its labels, or as `ImagePipeline`.
    """

    options = DetectionOptions
    auto_class = AutoModelForObjectDetection

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._names = label_names(self.model.config)

    def infer(
        self, request: pb.InferRequest, options: DetectionOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        image = self.image(request)
        outputs = self.outputs(self.processor(images=image, return_tensors="pt"), cancelled)
        (found,) = self.processor.post_process_object_detection(
            outputs,
            threshold=THRESHOLD if options.threshold is None else options.threshold,
            target_sizes=[(image.height, image.width)],
        )
        best = found["scores"].argsort(descending=True, stable=True)[: options.top_k]
        return pb.InferResponse(
            regions=[
                pb.ImageRegion(
                    label=self._names[found["labels"][index]],
                    score=float(found["scores"][index]),
                    points=corners(found["boxes"][index].tolist(), image.width, image.height),
                )
                for index in best.tolist()
            ]
        )
