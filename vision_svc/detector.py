"""The interface of a vision task: its description, and a detector that has its model in memory."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ml import mediapipe_pb2 as pb
from vision_svc.options import Option, Options

if TYPE_CHECKING:
    from vision_svc.frames.types import DecodedFrame, Limits, Rgb, SkippedFrame
    from vision_svc.instances import Instances

# What answers one frame.
FrameResponse: TypeAlias = (
    pb.FaceDetectionResponse
    | pb.FaceMeshResponse
    | pb.HandDetectionResponse
    | pb.HolisticTrackingResponse
    | pb.IrisTrackingResponse
    | pb.ObjectDetection3DResponse
    | pb.ObjectDetectionResponse
    | pb.ObjectTrackingResponse
    | pb.PoseDetectionResponse
    | pb.SegmentationResponse
    | pb.TemplateMatchingResponse
    | pb.VideoFrame
)
Response: TypeAlias = FrameResponse | pb.MediaSequenceResponse


class Mode(enum.Enum):
    """Whether pictures are independent (IMAGE) or follow each other (VIDEO)."""

    IMAGE = "image"
    VIDEO = "video"


class Detector(Protocol):
    """A task with its model in memory, for one thread at a time."""

    def detect(self, image: Rgb, time_ms: int) -> Response:
        """Runs the task on one picture.

        Args:
            image: the pixels.
            time_ms: the stream's own clock, strictly increasing; ignored in IMAGE mode.

        Returns:
            What was found. The fields that describe the frame (its timestamp and number, the
            timing) are not set.
        """
        ...

    def close(self) -> None:
        """Frees the model. `detect` must not be called afterwards."""
        ...


@dataclass(frozen=True)
class Asset:
    """A model file, and the MiB that an instance of it takes, measured on 640 x 480."""

    file: str
    memory_mb: int


@dataclass(frozen=True)
class VisionTask:
    """One vision task: its model files, its options, and how to open a detector.

    Attributes:
        name: its pipeline type.
        open: opens a detector from a model file.
        assets: model files by variant; the first is the default.
        variant_option: the option that selects the variant, if there is more than one.
        options: the options that callers may set.
        response: the message that answers a frame.
        keeps_state: whether a detector in VIDEO mode remembers earlier frames, so that it must not
            pass from one stream to another.
    """

    name: str
    open: Callable[[Path, Options, Mode], Detector]
    assets: Mapping[str, Asset]
    options: tuple[Option, ...]
    response: type[FrameResponse]
    variant_option: str | None = None
    keeps_state: bool = True

    def asset(self, options: Options) -> Asset:
        """The model file that these options select."""
        variant = str(options[self.variant_option]) if self.variant_option else ""
        return self.assets[variant]

    @property
    def default_asset(self) -> Asset:
        """The model file that the default options select."""
        return next(iter(self.assets.values()))


@dataclass(frozen=True)
class Answer:
    """What a task has found in a frame, and how long that took; nothing in a skipped one.

    Attributes:
        response: for the caller.
        frame: the frame that it belongs to; None for a response about the whole stream.
        inference_seconds: from the frame's pixels to the response.
    """

    response: Response
    frame: DecodedFrame | SkippedFrame | None
    inference_seconds: float


def skipped(response: FrameResponse, frame: SkippedFrame) -> Answer:
    """The answer to a frame without a picture.

    Args:
        response: an empty message of the kind that answers the frames.
        frame: the frame.
    """
    response.skipped = frame.reason.value
    response.skip_message = frame.message
    return Answer(response, frame, 0.0)


class Follower(Protocol):
    """A task's work on one stream. One thread at a time uses it; any may close it."""

    def follow(self, frame: DecodedFrame, options: Options) -> Sequence[Answer]:
        """Takes the next frame.

        Returns:
            The answers that it completes, in the order of the frames: its own, or those of
            earlier frames, or none yet.

        Raises:
            ServiceError: the stream ends with it.
            CallCancelledError: the follower was closed.
        """
        ...

    def skip(self, frame: SkippedFrame) -> Sequence[Answer]:
        """Takes a frame that brings no picture.

        Returns:
            The answers that are due: that of `skipped` to this frame, after those to earlier ones.
        """
        ...

    def finish(self, options: Options) -> Sequence[Answer]:
        """The answers that are still due when the stream has ended."""
        ...

    def close(self) -> None:
        """Frees what it uses, after the frame that runs now. Does not block."""
        ...


@dataclass(frozen=True)
class StreamTask:
    """A task on streams alone, without a model file of its own.

    Attributes:
        name: in the metrics.
        options: the options that callers may set.
        open: begins the work on a stream; it may borrow instances of other tasks.
        every_frame: whether the frame policy must be "every".
    """

    name: str
    options: tuple[Option, ...]
    open: Callable[[Instances, Limits], Follower]
    every_frame: bool = False
