"""Infer and GenerateText of one Florence-2."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from text_svc.link.server import Handlers
from text_svc.processes.launch import WorkerSpec
from text_svc.worker.generation.generator import (
    Prompt,
    TextGenerator,
)
from text_svc.worker.generation.service import GenerationHandlers
from text_svc.worker.infer.service import (
    InferHandlers,
    ModelThread,
)
from text_svc.worker.media.decode import decode_image

if TYPE_CHECKING:
    from text_svc.worker.pipelines.florence2 import Florence2


class Florence2Handlers(GenerationHandlers):
    """A task whose answer is text streams it; of others, the answer comes when it is whole."""

    def __init__(self, family: Florence2, generator: TextGenerator, launch: WorkerSpec) -> None:
        super().__init__(generator, launch)
        self._family = family
        self._max_pixels = launch.max_image_pixels
        self._thread = ModelThread(launch.max_waiting)
        self._infer = InferHandlers(family, launch)

    def table(self) -> Handlers:
        return {"GenerateText": self.generate_text, "Infer": self._infer.infer}

    async def generate_text(self, request: pb.TextRequest) -> AsyncGenerator[pb.TextResponse, None]:
        task, text = self._family.task_of(request.prompt), ""
        async with aclosing(super().generate_text(request)) as responses:
            if self._family.gives_text(task):
                async for response in responses:
                    yield response
                return
            async for response in responses:
                text += response.text
        found = self._family.answer(task, text)
        if found.text:
            yield pb.TextResponse(text=found.text, tokens_generated=response.tokens_generated)
        response.regions.extend(found.regions)
        yield response

    async def read_text(self, request: pb.TextRequest) -> Prompt:
        if len(request.images) != 1 or request.audio:
            raise InvalidArgumentError(
                f"Florence-2 takes one image; the request has {len(request.images)} and "
                f"{len(request.audio)} sounds",
                field="images",
            )

        def read(_: Any) -> dict[str, Any]:
            image = decode_image(request.images[0].data, self._max_pixels, "images[0]")
            return self._family.prepared(request.prompt, image)

        inputs = await self._thread.run(read)
        return Prompt(inputs["input_ids"][0].tolist(), inputs)
