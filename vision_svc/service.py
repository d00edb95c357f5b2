"""ml.MediapipeService: from messages to the domain and back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from ml import mediapipe_pb2 as pb
from ml import mediapipe_pb2_grpc
from shared import pipelines
from shared.errors import ServiceError, UnavailableError
from shared.rpc.handlers import add_changed
from shared.rpc.interceptors import Context
from vision_svc import scenes
from vision_svc.frames.headers import told_format
from vision_svc.frames.types import EncodedFrame
from vision_svc.frames.wire import ReceivedFrame, frame_reader
from vision_svc.scenes.inputs import FrameFeatures, TemplateSource, TemplateWish

if TYPE_CHECKING:
    from shared.pipelines import Pipeline
    from vision_svc.detector import Response
    from vision_svc.task_runner import TaskRunner

Frames: TypeAlias = AsyncIterator[ReceivedFrame]
Incoming: TypeAlias = AsyncIterator[tuple[EncodedFrame, Mapping[str, str]]]
Responses: TypeAlias = "AsyncIterator[Response]"

NAME = "ml.MediapipeService"


class MediapipeServicer(mediapipe_pb2_grpc.MediapipeServiceServicer):
    """The public service. Calls are UNAVAILABLE until `runner` is set."""

    def __init__(self) -> None:
        self.runner: TaskRunner | None = None

    async def DetectFaces(self, request: pb.ImageRequest, context: Context) -> Response:
        return await self._detect(pipelines.FACE_DETECTION, request, context)

    async def DetectHands(self, request: pb.ImageRequest, context: Context) -> Response:
        return await self._detect(pipelines.HAND_TRACKING, request, context)

    async def DetectPose(self, request: pb.ImageRequest, context: Context) -> Response:
        return await self._detect(pipelines.POSE_TRACKING, request, context)

    def StreamFaceDetection(self, requests: Frames, context: Context) -> Responses:
        return self._stream(pipelines.FACE_DETECTION, requests, context)

    def StreamHandTracking(self, requests: Frames, context: Context) -> Responses:
        return self._stream(pipelines.HAND_TRACKING, requests, context)

    def StreamPoseTracking(self, requests: Frames, context: Context) -> Responses:
        return self._stream(pipelines.POSE_TRACKING, requests, context)

    def StreamHolisticTracking(self, requests: Frames, context: Context) -> Responses:
        return self._stream(pipelines.HOLISTIC_TRACKING, requests, context)

    def StreamFaceMesh(self, requests: Frames, context: Context) -> Responses:
        return self._stream(pipelines.FACE_MESH, requests, context)

    def StreamIrisTracking(self, requests: Frames, context: Context) -> Responses:
        return self._stream(pipelines.IRIS_TRACKING, requests, context)

    def StreamSelfieSegmentation(self, requests: Frames, context: Context) -> Responses:
        return self._stream(pipelines.SELFIE_SEGMENTATION, requests, context)

    def StreamHairSegmentation(self, requests: Frames, context: Context) -> Responses:
        return self._stream(pipelines.HAIR_SEGMENTATION, requests, context)

    def StreamObjectDetection(self, requests: Frames, context: Context) -> Responses:
        return self._stream(pipelines.OBJECT_DETECTOR, requests, context)

    def StreamObjectTracking(self, requests: Frames, context: Context) -> Responses:
        return self._stream(pipelines.OBJECT_TRACKING, requests, context)

    def StreamObjectDetection3D(self, requests: Frames, context: Context) -> Responses:
        return self._stream(pipelines.OBJECT_DETECTION_3D, requests, context)

    def StreamTemplateMatching(self, requests: Frames, context: Context) -> Responses:
        frames = _frames_with_templates(requests)
        return self._ready().stream(scenes.TEMPLATE_MATCHING, frames, _metadata(context))

    def StreamAutoFlip(self, requests: Frames, context: Context) -> Responses:
        return self._ready().stream(scenes.AUTO_FLIP, _frames(requests), _metadata(context))

    async def ProcessMediaSequence(self, requests: Frames, context: Context) -> Response:
        frames = _frames_with_features(requests)
        response: Response = pb.MediaSequenceResponse()  # of a stream without frames
        async for answer in self._ready().stream(scenes.MEDIA_SEQUENCE, frames, _metadata(context)):
            response = answer
        return response

    async def _detect(
        self, pipeline: Pipeline, request: pb.ImageRequest, context: Context
    ) -> Response:
        frame = EncodedFrame(
            request.image_data,
            request.format,
            request.width,
            request.height,
            received_at=time.perf_counter(),
            data_field="image_data",
        )
        return await self._ready().detect(pipeline.name, frame, _metadata(context))

    def _stream(self, pipeline: Pipeline, requests: Frames, context: Context) -> Responses:
        return self._ready().stream(pipeline.name, _frames(requests), _metadata(context))

    def _ready(self) -> TaskRunner:
        if self.runner is None:
            raise UnavailableError("the service is starting")
        return self.runner


def add_servicer(servicer: MediapipeServicer, server: grpc.aio.Server) -> None:
    """Registers the servicer; its streams of frames are read as `ReceivedFrame`s."""

    def change(_: str, handler: Any) -> Any:
        reader = frame_reader(handler.request_deserializer)
        return handler._replace(request_deserializer=reader) if reader else handler

    add = mediapipe_pb2_grpc.add_MediapipeServiceServicer_to_server
    add_changed(add, servicer, server, NAME, change)


async def _frames(requests: Frames) -> Incoming:
    position = 0
    async for fields, data in requests:
        position += 1
        size = fields.width, fields.height
        yield _encoded(fields, data, position, fields.format, size), dict(fields.metadata)


async def _frames_with_templates(requests: Frames) -> Incoming:
    position, wish = 0, TemplateWish()
    async for fields, data in requests:
        position += 1
        # Here, where each frame comes by: a frame that is dropped takes no template along.
        wish = _next_wish(wish, fields)
        size = fields.frame_width, fields.frame_height
        frame = _encoded(fields, data, position, fields.frame_format, size, wish)
        yield _told(frame), dict(fields.metadata)


def _next_wish(wish: TemplateWish, fields: pb.TemplateMatchingRequest) -> TemplateWish:
    if fields.template_data:
        template = TemplateSource(
            fields.template_data, fields.template_width, fields.template_height
        )
        if template != wish.template:  # the same object means the same template
            wish = replace(wish, template=template)
    if fields.HasField("threshold"):
        wish = replace(wish, threshold=fields.threshold)
    return wish


async def _frames_with_features(requests: Frames) -> Incoming:
    position = 0
    async for fields, data in requests:
        position += 1
        size = fields.width, fields.height
        features = FrameFeatures(dict(fields.features))
        frame = _encoded(fields, data, position, fields.format, size, features)
        yield _told(frame), dict(fields.metadata)


def _encoded(
    fields: Any,
    data: bytes | memoryview,
    position: int,
    name: str,
    size: tuple[int, int],
    extra: object = None,
) -> EncodedFrame:
    return EncodedFrame(
        data,
        name,
        *size,
        fields.timestamp_ms,
        fields.frame_number,
        position,
        received_at=time.perf_counter(),
        extra=extra,
    )


def _told(frame: EncodedFrame) -> EncodedFrame:
    """The frame with a format, which its bytes say if the caller does not.

    One whose bytes do not say it is a bad frame: the stream's options say what comes of it.
    """
    if frame.format:
        return frame
    try:
        return replace(frame, format=told_format(frame.data, frame.width, frame.height))
    except ServiceError as refusal:
        return replace(frame, refusal=refusal)


def _metadata(context: Context) -> dict[str, str]:
    """The call's metadata, without binary values."""
    pairs = context.invocation_metadata() or ()
    return {key: value for key, value in pairs if isinstance(value, str)}
