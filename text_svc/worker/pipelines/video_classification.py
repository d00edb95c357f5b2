"""Labels of videos, out of those that the model was trained with."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from pydantic import Field
from transformers import AutoModelForVideoClassification

# transformers' public name for it requires torchvision, which processors on Pillow do without.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, InvalidModelError
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.infer.base import InferPipeline
from text_svc.worker.infer.labels import LabelOptions, classified, label_names
from text_svc.worker.media.video_files import VideoFile

# Frames that a model sees at once; the most of a published one are 64.
MAX_MODEL_FRAMES = 128


class VideoOptions(LabelOptions):
    """See `LabelOptions`.

    Attributes:
        frame_sampling_rate: the model sees every so many-th frame from the first on, as in
            transformers' pipeline, where it is 1; 0 spreads them over the whole clip.
    """

    frame_sampling_rate: int = Field(0, ge=0, le=1000)


class VideoClassifier(InferPipeline[VideoOptions]):
    """A clip to scores of labels. The model sees some of its frames.

    Raises:
        InvalidModelError: the model's config does not name its labels, or how many frames it takes.
    """

    takes = ("video",)
    options = VideoOptions
    auto_class = AutoModelForVideoClassification
    processor_class = AutoImageProcessor

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._names = label_names(self.model.config)
        self._frames = _frames(self.model.config)

    def infer(
        self, request: pb.InferRequest, options: VideoOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        video = VideoFile(request.video.data, self.spec.max_video_frames)
        # Frame by frame: all of a large video would take gigabytes.
        frames = [
            self.processor([picture], return_tensors="pt")["pixel_values"]
            for picture in video.frames(self._indices(video.count, options), cancelled)
        ]
        inputs = {"pixel_values": torch.cat(frames, dim=1)}
        return classified(self._names, self.forward(inputs)[0], self.model.config, options)

    def _indices(self, count: int, options: VideoOptions) -> list[int]:
        """The frames of a clip of `count` that the model sees."""
        if not options.frame_sampling_rate:
            return _spread(count - 1, self._frames)
        last = self._frames * options.frame_sampling_rate - 1
        if last >= count:
            raise InvalidArgumentError(
                f"video has {count} frames; {self._frames} frames with frame_sampling_rate "
                f"{options.frame_sampling_rate} need {last + 1}",
                field="video",
            )
        return _spread(last, self._frames)


def _frames(config: Any) -> int:
    """The frames that a model sees."""
    frames = getattr(config, "num_frames", None)
    if not isinstance(frames, int) or not 0 < frames <= MAX_MODEL_FRAMES:
        raise InvalidModelError(
            f"num_frames in config.json is {frames}; it must be from 1 to {MAX_MODEL_FRAMES}"
        )
    return frames


def _spread(last: int, count: int) -> list[int]:
    """As many whole numbers from 0 to `last`, as NumPy's `linspace` cuts them."""
    return [int(number) for number in np.linspace(0, last, count)]
