"""Infer, GenerateText and ChatCompletion of one model that sees or hears."""

from __future__ import annotations

from typing import Any

from ml import transformers_pb2 as pb
from text_svc.link.server import Handlers
from text_svc.processes.launch import WorkerSpec
from text_svc.worker.generation.generator import (
    Prompt,
    TextGenerator,
)
from text_svc.worker.generation.service import GenerationHandlers
from text_svc.worker.infer.base import Family
from text_svc.worker.infer.service import (
    InferHandlers,
    check_request,
)
from text_svc.worker.media.prompts import MediaPrompts


class MultimodalHandlers(GenerationHandlers):
    """The prompts of all calls are made of text and media in the same way."""

    def __init__(
        self,
        family: Family[Any],
        generator: TextGenerator,
        prompts: MediaPrompts,
        launch: WorkerSpec,
    ) -> None:
        super().__init__(generator, launch)
        self._family = family
        self._prompts = prompts
        self._launch = launch
        self._infer = InferHandlers(family, launch)

    def table(self) -> Handlers:
        return {**super().table(), "Infer": self.infer}

    async def read_text(self, request: pb.TextRequest) -> Prompt:
        return await self._prompts.of_text(request)

    async def read_chat(self, request: pb.ChatRequest) -> Prompt:
        return await self._prompts.of_chat(request.messages)

    async def infer(self, request: pb.InferRequest) -> pb.InferResponse:
        """Puts the media into the prompt, then as `InferHandlers`."""
        check_request(request, self._family, self._launch)
        await self._prompts.fill_in(request)
        return await self._infer.infer(request)
