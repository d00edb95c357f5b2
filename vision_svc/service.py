"""ml.MediapipeService: from messages to the domain and back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from ml import mediapipe_pb2 as pb
from ml import mediapipe_pb2_grpc
from shared.errors import NotImplementedRpcError, UnavailableError
from shared.rpc.interceptors import Context
from vision_svc.frames.types import EncodedFrame

if TYPE_CHECKING:
    from vision_svc.engine import Engine
    from vision_svc.frames.wire import ReceivedFrame

NAME = "ml.MediapipeService"


class MediapipeServicer(mediapipe_pb2_grpc.MediapipeServiceServicer):
    """Answers as soon as `engine` is set; until then calls are UNAVAILABLE."""

    def __init__(self) -> None:
        self.engine: Engine | None = None

    async def DetectFaces(self, request: pb.ImageRequest, context: Context) -> Any:
        return await self._detect("face-detection", request, context)

    async def DetectHands(self, request: pb.ImageRequest, context: Context) -> Any:
        return await self._detect("hand-tracking", request, context)

    async def DetectPose(self, request: pb.ImageRequest, context: Context) -> Any:
        return await self._detect("pose-tracking", request, context)

    def StreamFaceDetection(self, requests: Any, context: Context) -> Any:
        return self._stream("face-detection", requests, context)

    def StreamHandTracking(self, requests: Any, context: Context) -> Any:
        return self._stream("hand-tracking", requests, context)

    def StreamPoseTracking(self, requests: Any, context: Context) -> Any:
        return self._stream("pose-tracking", requests, context)

    def StreamHolisticTracking(self, requests: Any, context: Context) -> Any:
        return self._stream("holistic-tracking", requests, context)

    def StreamFaceMesh(self, requests: Any, context: Context) -> Any:
        return self._stream("face-mesh", requests, context)

    def StreamIrisTracking(self, requests: Any, context: Context) -> Any:
        return self._stream("iris-tracking", requests, context)

    def StreamSelfieSegmentation(self, requests: Any, context: Context) -> Any:
        return self._stream("selfie-segmentation", requests, context)

    def StreamHairSegmentation(self, requests: Any, context: Context) -> Any:
        return self._stream("hair-segmentation", requests, context)

    def StreamObjectDetection(self, requests: Any, context: Context) -> NoReturn:
        _not_built("StreamObjectDetection", "no object detection model comes with this service")

    def StreamObjectTracking(self, requests: Any, context: Context) -> NoReturn:
        _not_built("StreamObjectTracking", "no object detection model comes with this service")

    def StreamObjectDetection3D(self, requests: Any, context: Context) -> NoReturn:
        _not_built("StreamObjectDetection3D", "MediaPipe no longer ships its Objectron models")

    def StreamTemplateMatching(self, requests: Any, context: Context) -> NoReturn:
        _not_built("StreamTemplateMatching", "MediaPipe's Tasks have no template matching")

    def StreamAutoFlip(self, requests: Any, context: Context) -> NoReturn:
        _not_built("StreamAutoFlip", "MediaPipe's Tasks have no AutoFlip")

    async def ProcessMediaSequence(self, requests: Any, context: Context) -> NoReturn:
        _not_built("ProcessMediaSequence", "MediaPipe's Tasks have no media sequences")

    async def _detect(self, task: str, request: pb.ImageRequest, context: Context) -> Any:
        frame = EncodedFrame(
            request.image_data,
            request.format,
            request.width,
            request.height,
            received_at=time.perf_counter(),
            data_field="image_data",
        )
        return await self._ready().detect(task, frame, _metadata(context))

    def _stream(
        self, task: str, requests: AsyncIterator[ReceivedFrame], context: Context
    ) -> AsyncIterator[Any]:
        return self._ready().stream(task, _frames(requests), _metadata(context))

    def _ready(self) -> Engine:
        if self.engine is None:
            raise UnavailableError("the service is starting")
        return self.engine


async def _frames(
    requests: AsyncIterator[ReceivedFrame],
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
    """The call's metadata, without what is binary."""
    pairs = context.invocation_metadata() or ()
    return {key: value for key, value in pairs if isinstance(value, str)}


def _not_built(rpc: str, why: str) -> NoReturn:
    raise NotImplementedRpcError(f"{rpc} is not built: {why}")
