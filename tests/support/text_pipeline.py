"""A pipeline of the text worker behind a real gRPC server in the test's own process.

It is what a worker process serves behind the link, without the seconds that each process takes to
import torch.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor

from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc
from shared.errors import InternalError
from shared.pipelines import find_pipeline
from shared.rpc.server import create_server
from shared.settings import ServerSettings
from text_svc.link.call import Payload
from text_svc.link.client import Link
from text_svc.link.server import SERVICE, Handlers, listen
from text_svc.options import parse_options
from text_svc.processes.specs import WorkerSpec
from text_svc.settings import TextSettings
from text_svc.worker import pipelines
from text_svc.worker.generation.generator import TextGenerator

# Of the models that run in this process.
_scratch = tempfile.TemporaryDirectory(prefix="text-pipelines-")

# Builds a tiny model once, by its name, and returns its folder.
Tiny = Callable[[str], Path]


def spec_of(
    folder: Path, pipeline: str, options: Mapping[str, str] | None = None, **fields: Any
) -> WorkerSpec:
    """The spec of a worker, as text_svc makes it of its settings; `fields` replace some of it."""
    settings = TextSettings().model_dump(
        include=set(WorkerSpec.model_fields) & set(TextSettings.model_fields)
    )
    return WorkerSpec(
        **{
            **settings,
            "scratch": Path(_scratch.name, uuid.uuid4().hex),
            "model_id": folder.name,
            "folder": folder,
            "threads": 2,
            "pipeline": find_pipeline(pipeline).name,
            "options": parse_options(options or {}),
            **fields,
        }
    )


@contextlib.asynccontextmanager
async def serve(
    spec: WorkerSpec,
) -> AsyncIterator[transformers_pb2_grpc.TransformersServiceAsyncStub]:
    """A client's stub of the model of a spec."""
    loaded = pipelines.load(spec)
    front = create_server(ServerSettings())
    with tempfile.TemporaryDirectory(prefix="text-pipeline-") as folder:
        path = Path(folder, "link.sock")
        worker = await listen(loaded.handlers, path, max_message_bytes=spec.max_message_bytes)
        link = await Link.connect(path, lambda: InternalError("the link has ended"))
        front.add_generic_rpc_handlers((_forwarding(link, loaded.handlers),))
        front.add_insecure_port(f"unix:{folder}/front.sock")
        await front.start()
        try:
            async with grpc.aio.insecure_channel(f"unix:{folder}/front.sock") as channel:
                yield transformers_pb2_grpc.TransformersServiceStub(channel)
        finally:
            await front.stop(None)
            link.close()
            worker.close()
            for generator in _generators(loaded.handlers):
                await generator.close()


def _generators(handlers: Handlers) -> set[TextGenerator]:
    """Those of a model, whose chat templates have processes. A worker ends, and closes nothing."""
    owners: list[Any] = [getattr(handler, "__self__", None) for handler in handlers.values()]
    values = itertools.chain.from_iterable(
        getattr(owner, "__dict__", {}).values() for owner in owners
    )
    return {value for value in values if isinstance(value, TextGenerator)}


def _forwarding(link: Link, names: Iterable[str]) -> grpc.GenericRpcHandler:
    """Sends all calls of these RPCs on over a link, as bytes."""

    def handler(rpc: MethodDescriptor) -> Any:
        def stream(request: Any, _: Any) -> AsyncIterator[Payload]:
            return link.call(rpc.name, request, metadata={})

        async def unary(request: bytes, _: Any) -> Payload:
            async with contextlib.aclosing(link.call(rpc.name, request, metadata={})) as responses:
                return await anext(responses)

        as_bytes = {"response_serializer": attrgetter("data")}
        if rpc.client_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, **as_bytes)
        if rpc.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, **as_bytes)
        return grpc.unary_unary_rpc_method_handler(unary, **as_bytes)

    handlers = {name: handler(SERVICE.methods_by_name[name]) for name in names}
    return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)


async def infer(folder: Path, pipeline: str, **request: Any) -> pb.InferResponse:
    """The answer of a model that is loaded for this one call."""
    options = {name: str(value) for name, value in request.pop("options", {}).items()}
    async with serve(spec_of(folder, pipeline)) as stub:
        return await stub.Infer(pb.InferRequest(**request, options=options))


def scores(response: pb.InferResponse) -> dict[str, float]:
    """Scores by label, of an answer whose best one comes first."""
    values = [label.score for label in response.labels]
    assert values == sorted(values, reverse=True), "the best comes first"
    return {label.label: label.score for label in response.labels}
