"""The two services of vision_svc: the public one, and the one that the control plane drives."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from ml import mediapipe_pb2 as pb
from ml import mediapipe_pb2_grpc
from ml.internal import worker_pb2, worker_pb2_grpc
from shared.errors import NotImplementedRpcError, UnavailableError
from shared.rpc.admission import Admission
from shared.rpc.interceptors import Context
from vision_svc.frames.types import EncodedFrame

if TYPE_CHECKING:
    from vision_svc.engine import Engine
    from vision_svc.frames.wire import ReceivedFrame
    from vision_svc.models import LoadedModel, Models

NAME = "ml.MediapipeService"
WORKER_NAME = "ml.internal.ModelWorker"


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


class ModelWorkerServicer(worker_pb2_grpc.ModelWorkerServicer):
    """Answers as soon as `models` is set; until then calls are UNAVAILABLE."""

    def __init__(self, admission: Admission) -> None:
        self.models: Models | None = None
        self._admission = admission

    async def Load(self, request: worker_pb2.LoadRequest, context: Context) -> AsyncIterator[Any]:
        async for model in self._ready().load(
            request.model_id, request.pipeline_type, request.options
        ):
            info = _model_info(model)
            done = info if info.state == worker_pb2.MODEL_STATE_READY else None
            yield worker_pb2.LoadResponse(
                state=info.state,
                bytes_fetched=model.bytes_fetched,
                bytes_total=model.bytes_total,
                model=done,
            )

    async def Unload(
        self, request: worker_pb2.UnloadRequest, context: Context
    ) -> worker_pb2.UnloadResponse:
        await self._ready().unload(request.model_id)
        return worker_pb2.UnloadResponse()

    async def List(
        self, request: worker_pb2.ListRequest, context: Context
    ) -> worker_pb2.ListResponse:
        self._admission.hear()
        return worker_pb2.ListResponse(
            models=map(_model_info, self._ready().list()), admitted=self._admission.admitted
        )

    async def Admit(
        self, request: worker_pb2.AdmitRequest, context: Context
    ) -> worker_pb2.AdmitResponse:
        self._admission.admit()
        return worker_pb2.AdmitResponse()

    def _ready(self) -> Models:
        if self.models is None:
            raise UnavailableError("the service is starting")
        return self.models


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


def _model_info(model: LoadedModel) -> worker_pb2.ModelInfo:
    return worker_pb2.ModelInfo(
        model_id=model.model_id,
        pipeline_type=model.task,
        state=f"MODEL_STATE_{model.state.name}",
        ram_bytes=model.ram_bytes,
        loaded_at=model.loaded_at,
        options=model.options,
    )
