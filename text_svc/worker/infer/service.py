"""The handler of `Infer`: checks the request and runs it in the model's thread."""

from __future__ import annotations

import threading
from typing import Any, Protocol

from pydantic import BaseModel

from ml import transformers_pb2 as pb
from shared.errors import InputTooLargeError, InvalidArgumentError, MissingFieldError
from text_svc.link.server import Handlers
from text_svc.options import parse_as
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.checks import check_sizes
from text_svc.worker.model_thread import ModelThread


class Infers(Protocol):
    """What the handler needs of a pipeline; see `text_svc.worker.infer.base.InferPipeline`."""

    @property
    def takes(self) -> tuple[str, ...]: ...

    @property
    def options(self) -> type[BaseModel]: ...

    def infer(
        self, request: pb.InferRequest, options: Any, cancelled: threading.Event
    ) -> pb.InferResponse: ...


class InferHandlers:
    """Infer, of any pipeline.

    Args:
        pipeline: answers the checked requests.
        spec: its limits.
        running: calls that it answers at once.
    """

    def __init__(self, pipeline: Infers, spec: WorkerSpec, running: int = 1) -> None:
        self.spec = spec
        self.thread = ModelThread(spec.max_waiting_calls, running, spec.caller_weights)
        self._pipeline = pipeline

    def table(self) -> Handlers:
        """The handlers by the names of their RPCs."""
        return {"Infer": self.infer}

    async def infer(self, request: pb.InferRequest) -> pb.InferResponse:
        """One answer. Raises what `check_request` does, and what the pipeline does."""
        check_request(request, self._pipeline, self.spec)
        options = parse_as(self._pipeline.options, request.options)
        return await self.thread.run(
            lambda cancelled: self._pipeline.infer(request, options, cancelled)
        )


def check_request(request: pb.InferRequest, pipeline: Infers, spec: WorkerSpec) -> None:
    """Refuses input that the pipeline does not take, and texts over the limits.

    Raises:
        MissingFieldError, InvalidArgumentError, InputTooLargeError: with the field or the limit.
    """
    given = request.WhichOneof("input")
    takes = " or ".join(pipeline.takes)
    if given is None:
        raise MissingFieldError(f"a {spec.pipeline} model takes {takes}", field="input")
    if given not in pipeline.takes:
        raise InvalidArgumentError(
            f"a {spec.pipeline} model takes {takes}; the request has {given}", field=given
        )
    for name, count in (
        ("labels", len(request.labels)),
        ("documents", len(request.ranking.documents)),
    ):
        if count > spec.max_texts:
            raise InputTooLargeError(
                f"the request has {count} {name}; the limit is {spec.max_texts}",
                metadata={"limit": str(spec.max_texts)},
            )
    texts = [
        *(request.text, request.prompt, request.text_pair.first, request.text_pair.second),
        *(request.ranking.query, *request.ranking.documents, *request.labels),
        *(word.text for word in request.document.words),
    ]
    check_sizes(texts, "the request's text", spec.max_prompt_bytes, empty=True)
    for text in texts:
        check_sizes([text], "one of the request's texts", spec.max_text_bytes, empty=True)
    if given == "text" and not request.text:
        raise MissingFieldError("text is empty", field="text")
