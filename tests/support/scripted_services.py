"""The services behind http_svc, over real gRPC, with answers that a test chooses."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from grpc_health.v1 import health_pb2_grpc

from ml import model_management_pb2 as mgmt
from ml import model_management_pb2_grpc as mgmt_rpc
from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc as text_rpc
from shared.caller import caller
from shared.errors import ModelNotLoadedError, ServiceError
from shared.rpc.server import Health, create_server
from shared.settings import ServerSettings

NAMES = ("ml.TransformersService", "ml.ModelManagementService")


@dataclass
class Script:
    """What the services answer, and what they were asked.

    Attributes:
        pieces: the text of a generation.
        messages: all messages of a conversation's answer, instead of pieces.
        calls: a conversation with tools is answered by a call of the first one.
        finish: its finish_reason.
        usage: its counts.
        fails_after: pieces after which it fails; None does not.
        error: what it fails with.
        endless: the generation goes on until it is cancelled.
        embeddings: the vectors, in turn.
        inferred: the answer of Infer.
        segments: of TranscribeStream, one a message.
        models: of ListModels.
        absent: the model that is not loaded.
        requests: what was asked, in order.
        callers: who asked.
        cancelled: set when a generation was cancelled.
        running: generations that run.
    """

    pieces: list[str] = field(default_factory=lambda: ["Hel", "lo", "."])
    messages: list[pb.ChatResponse] = field(default_factory=list)
    calls: bool = False
    finish: str = "stop"
    usage: pb.GenerationUsage = field(
        default_factory=lambda: pb.GenerationUsage(prompt_tokens=7, generated_tokens=3)
    )
    fails_after: int | None = None
    error: ServiceError | None = None
    endless: bool = False
    embeddings: list[list[float]] = field(default_factory=lambda: [[0.5, -1.0]])
    inferred: pb.InferResponse = field(default_factory=pb.InferResponse)
    segments: list[pb.TranscriptSegment] = field(default_factory=list)
    models: list[mgmt.ModelStatus] = field(default_factory=list)
    absent: str = "no/no"
    requests: list[object] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    running: int = 0

    def asked(self, request: object) -> None:
        self.requests.append(request)
        self.callers.append(caller())
        if getattr(request, "model", "") == self.absent:
            raise ModelNotLoadedError(f"the model {self.absent!r} is not loaded")
        if self.error and self.fails_after is None:
            raise self.error


class _Text(text_rpc.TransformersServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    async def ChatCompletion(self, request, context):
        if self._script.messages:
            self._script.asked(request)
            for message in self._script.messages:
                yield message
            return
        if self._script.calls and request.tools:
            call = pb.ToolCallDelta(id="call_1", name=request.tools[0].name, arguments="{}")
            yield pb.ChatResponse(tool_calls=[call])
            yield pb.ChatResponse(done=True, finish_reason="tool_calls", usage=self._script.usage)
            return
        async for text in self._pieces(request):
            yield pb.ChatResponse(content=text)
        script = self._script
        yield pb.ChatResponse(done=True, finish_reason=script.finish, usage=script.usage)

    async def GenerateText(self, request, context):
        async for text in self._pieces(request):
            yield pb.TextResponse(text=text)
        script = self._script
        yield pb.TextResponse(done=True, finish_reason=script.finish, usage=script.usage)

    async def _pieces(self, request) -> AsyncIterator[str]:
        script = self._script
        script.asked(request)
        script.running += 1
        try:
            for index, text in enumerate(script.pieces):
                if index == script.fails_after and script.error:
                    raise script.error
                yield text
            while script.endless:
                yield "more "
                await asyncio.sleep(0.001)
        except (asyncio.CancelledError, GeneratorExit):
            script.cancelled.set()
            raise
        finally:
            script.running -= 1

    async def GenerateEmbeddings(self, request, context):
        self._script.asked(request)
        values = itertools.cycle(self._script.embeddings)
        vectors = [pb.GeneratedEmbedding(values=next(values)) for _ in request.texts]
        return pb.GeneratedEmbeddingsResponse(embeddings=vectors, tokens=5)

    async def StreamEmbeddings(self, request_iterator, context):
        values = itertools.cycle(self._script.embeddings)
        first = 0
        async for request in request_iterator:
            self._script.asked(request)
            vectors = [pb.GeneratedEmbedding(values=next(values)) for _ in request.texts]
            yield pb.GeneratedEmbeddingsResponse(embeddings=vectors, first_text=first)
            first += len(vectors)

    async def TokenCount(self, request, context):
        self._script.asked(request)
        return pb.TokenCountResponse(tokens=self._script.usage.prompt_tokens)

    async def Infer(self, request, context):
        self._script.asked(request)
        return self._script.inferred

    async def TranscribeStream(self, request_iterator, context):
        async for request in request_iterator:
            self._script.asked(request)
        for segment in self._script.segments:
            yield pb.TranscribeResponse(segments=[segment])


class _Models(mgmt_rpc.ModelManagementServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    async def ListModels(self, request, context):
        self._script.asked(request)
        return mgmt.ListModelsResponse(models=self._script.models)


@contextlib.asynccontextmanager
async def scripted_services(script: Script) -> AsyncIterator[str]:
    """Both services on one port, whose address it yields."""
    server = create_server(ServerSettings())
    health = Health(NAMES)
    await health.set_all(True)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    text_rpc.add_TransformersServiceServicer_to_server(_Text(script), server)
    mgmt_rpc.add_ModelManagementServiceServicer_to_server(_Models(script), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
