"""ml.MediapipeService: from messages to the domain and back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc

from ml import mediapipe_pb2 as pb
from ml import mediapipe_pb2_grpc
from shared import pipelines
from shared.errors import NotImplementedRpcError, UnavailableError
from shared.rpc.interceptors import Context
from vision_svc.frames.types import EncodedFrame
from vision_svc.frames.wire import ReceivedFrame, read_frame

if TYPE_CHECKING:
    from shared.pipelines import Pipeline
    from vision_svc.detector import Response
    from vision_svc.task_runner import TaskRunner

Frames: TypeAlias = AsyncIterator[ReceivedFrame]
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
        return self._stream(pipelines.OBJECT_DETECTION, requests, context)

    def StreamObjectTracking(self, requests: Frames, context: Context) -> NoReturn:
        _not_built("StreamObjectTracking", "no object detection model comes with this service")

    def StreamObjectDetection3D(self, requests: Frames, context: Context) -> NoReturn:
        _not_built("StreamObjectDetection3D", "MediaPipe no longer ships its Objectron models")

    def StreamTemplateMatching(
        self, requests: AsyncIterator[pb.TemplateMatchingRequest], context: Context
    ) -> NoReturn:
        _not_built("StreamTemplateMatching", "MediaPipe's Tasks have no template matching")

    def StreamAutoFlip(self, requests: Frames, context: Context) -> NoReturn:
        _not_built("StreamAutoFlip", "MediaPipe's Tasks have no AutoFlip")

    async def ProcessMediaSequence(
        self, requests: AsyncIterator[pb.MediaSequenceFrame], context: Context
    ) -> NoReturn:
        _not_built("ProcessMediaSequence", "MediaPipe's Tasks have no media sequences")

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


class _HandlerCollector:
    """Stands for a server while generated code registers a servicer, and keeps the handlers."""

    def __init__(self) -> None:
        # Named tuples, contrary to the type stubs of grpc.
        self.by_method: Mapping[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        pass  # the same handlers again

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.by_method = handlers


def add_servicer(servicer: MediapipeServicer, server: grpc.aio.Server) -> None:
    """Registers the servicer; its streams of VideoFrame are read as `ReceivedFrame`s."""
    generated = _HandlerCollector()
    mediapipe_pb2_grpc.add_MediapipeServiceServicer_to_server(servicer, generated)
    handlers = {
        method: handler._replace(request_deserializer=read_frame)
        if handler.request_deserializer == pb.VideoFrame.FromString
        else handler
        for method, handler in generated.by_method.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))


async def _frames(
    requests: Frames,
) -> AsyncIterator[tuple[EncodedFrame, Mapping[str, str]]]:
    position = 0
    async for fields, data in requests:
        position += 1
        frame = EncodedFrame(
            data,
            fields.format,
            fields.width,
            fields.height,
            fields.timestamp_ms,
            fields.frame_number,
            position,
            received_at=time.perf_counter(),
        )
        yield frame, dict(fields.metadata)


def _metadata(context: Context) -> dict[str, str]:
    """The call's metadata, without binary values."""
    pairs = context.invocation_metadata() or ()
    return {key: value for key, value in pairs if isinstance(value, str)}


def _not_built(rpc: str, why: str) -> NoReturn:
    raise NotImplementedRpcError(f"{rpc} is not built: {why}")
