"""The services behind this one, with the calls that are made of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from http_svc.settings import HttpSettings
from ml import model_management_pb2 as mgmt
from ml import transformers_pb2 as pb
from shared.rpc.channels import MODEL_MANAGEMENT
from shared.rpc.upstream import Upstream

TEXT = "ml.TransformersService"


class Services:
    """The models' services. A context manager. All calls raise `ServiceError`.

    Attributes:
        settings: of this service.
    """

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        self._text = Upstream(settings.text_addr, TEXT, settings.wait_seconds)
        self._models = Upstream(settings.model_mgmt_addr, MODEL_MANAGEMENT, settings.wait_seconds)
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._open.enter_async_context(self._text)
        await self._open.enter_async_context(self._models)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._open.aclose()

    def chat(self, request: pb.ChatRequest) -> AsyncGenerator[pb.ChatResponse, None]:
        """Generates the next message of a conversation."""
        return self._text.stream("ChatCompletion", request, pb.ChatResponse)

    def generate(self, request: pb.TextRequest) -> AsyncGenerator[pb.TextResponse, None]:
        """Continues a prompt."""
        return self._text.stream("GenerateText", request, pb.TextResponse)

    async def count_tokens(self, chat: pb.ChatRequest) -> int:
        """Counts the tokens of the prompt of a conversation."""
        think = chat.think if chat.HasField("think") else None
        request = pb.TokenCountRequest(
            model=chat.model, messages=chat.messages, tools=chat.tools, think=think
        )
        seconds = self.settings.call_seconds
        return (await self._text.call("TokenCount", request, pb.TokenCountResponse, seconds)).tokens

    async def embed(self, request: pb.GenerateEmbeddingsRequest) -> pb.GeneratedEmbeddingsResponse:
        """Turns texts into vectors."""
        seconds = self.settings.call_seconds
        return await self._text.call(
            "GenerateEmbeddings", request, pb.GeneratedEmbeddingsResponse, seconds
        )

    async def infer(self, request: pb.InferRequest) -> pb.InferResponse:
        """What a model of another pipeline type makes of a text, a sound and so on."""
        return await self._text.call("Infer", request, pb.InferResponse, self.settings.call_seconds)

    def transcribe(
        self, requests: Sequence[pb.TranscribeRequest]
    ) -> AsyncGenerator[pb.TranscribeResponse, None]:
        """Transcribes speech, segment by segment."""
        return self._text.exchange("TranscribeStream", requests, pb.TranscribeResponse)

    async def models(self) -> list[mgmt.ModelStatus]:
        """All models in memory, on their way there, or desired."""
        answer = await self._models.call(
            "ListModels",
            mgmt.ListModelsRequest(),
            mgmt.ListModelsResponse,
            self.settings.call_seconds,
        )
        return list(answer.models)
