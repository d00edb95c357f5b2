"""Infer of one model: checks the request, runs it in the model's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ml import transformers_pb2 as pb
from shared.errors import (
    InputTooLargeError,
    InvalidArgumentError,
    MissingFieldError,
    QueueFullError,
)
from text_svc.link.server import Handlers
from text_svc.options import parse_as
from text_svc.processes.launch import WorkerSpec
from text_svc.torch_models.pretrained import loading_errors
from text_svc.worker.checks import check_sizes
from text_svc.worker.infer.base import Family
from text_svc.worker.loaded import LoadedPipeline

Result = TypeVar("Result")


class ModelThread:
    """The one thread of a model, and those who wait for it.

    Args:
        max_waiting: calls that wait at most; one more is refused.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._active = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="infer")

    async def run(self, work: Callable[[threading.Event], Result]) -> Result:
        """Runs `work`, which is given an event that is set when its caller has gone.

        Raises:
            QueueFullError: too many wait already.
        """
        if self._active > self._max_waiting:
            raise QueueFullError(f"one call runs and {self._max_waiting} wait, which is the limit")
        cancelled = threading.Event()
        loop = asyncio.get_running_loop()
        self._active += 1
        future = self._pool.submit(work, cancelled)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended))
        try:
            return await asyncio.wrap_future(future)
        finally:
            cancelled.set()

    def _ended(self) -> None:
        self._active -= 1


class InferHandlers:
    """Infer, for any family."""

    def __init__(self, family: Family[Any], launch: WorkerSpec) -> None:
        self._family = family
        self._launch = launch
        self._thread = ModelThread(launch.max_waiting)

    def table(self) -> Handlers:
        """The handler by the name of its RPC."""
        return {"Infer": self.infer}

    async def infer(self, request: pb.InferRequest) -> pb.InferResponse:
        """Checks the request and runs the model in its thread."""
        check_request(request, self._family, self._launch)
        options = parse_as(self._family.options, request.options)
        return await self._thread.run(
            lambda cancelled: self._family.infer(request, options, cancelled)
        )


def load_family(launch: WorkerSpec, kind: type[Family[Any]]) -> LoadedPipeline:
    """Loads a model of a family that needs no more than Infer.

    Raises:
        ServiceError: why it cannot be loaded.
    """
    with loading_errors(launch):
        family = kind(launch)
    return LoadedPipeline(InferHandlers(family, launch).table(), family.report())


def check_request(request: pb.InferRequest, family: Family[Any], launch: WorkerSpec) -> None:
    """Refuses what the family does not take, and texts over the limits.

    Raises:
        MissingFieldError, InvalidArgumentError, InputTooLargeError: with the field or the limit.
    """
    given = request.WhichOneof("input")
    takes = " or ".join(family.takes)
    if given is None:
        raise MissingFieldError(f"a {launch.pipeline} model takes {takes}", field="input")
    if given not in family.takes:
        raise InvalidArgumentError(
            f"a {launch.pipeline} model takes {takes}; the request has {given}", field=given
        )
    for name, count in (
        ("labels", len(request.labels)),
        ("documents", len(request.ranking.documents)),
    ):
        if count > launch.max_texts:
            raise InputTooLargeError(
                f"{count} {name} are over the limit of {launch.max_texts} a call",
                metadata={"limit": str(launch.max_texts)},
            )
    texts = [
        *(request.text, request.prompt, request.text_pair.first, request.text_pair.second),
        *(request.ranking.query, *request.ranking.documents, *request.labels),
    ]
    check_sizes(texts, "the request's text", launch.max_prompt_bytes, empty=True)
    if given == "text" and not request.text:
        raise MissingFieldError("text is empty", field="text")
