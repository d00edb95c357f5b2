"""text_svc and a file provider as real processes, without Envoy and without the control plane."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from ml import transformers_pb2 as pb
from ml import transformers_pb2_grpc
from ml.internal import worker_pb2, worker_pb2_grpc
from tests.support.processes import free_port
from tests.support.stack import ROOT, wait_for

READY = worker_pb2.MODEL_STATE_READY


@dataclass
class TextService:
    """A running text_svc.

    Attributes:
        models: the folder that the provider serves, ORG/NAME/FILE.
        converted: the folder of the conversions.
    """

    process: psutil.Process
    port: int
    metrics_port: int
    models: Path
    converted: Path

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[TextClient]:
        """A connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options) as channel:
            await channel.channel_ready()
            yield TextClient(channel)

    def children(self, *words: str) -> list[psutil.Process]:
        """Processes that it has started, at any depth, whose command has all the words."""
        found = []
        for child in self.process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                command = " ".join(child.cmdline())
                if all(word in command for word in words):
                    found.append(child)
        return found

    def held(self, model: str) -> tuple[int, int]:
        """RSS and PSS of all processes of a model, in bytes."""
        (worker,) = self.children("text_svc.worker", f'"{model}"')
        rss = pss = 0
        for process in (worker, *worker.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                memory = process.memory_full_info()
                rss, pss = rss + memory.rss, pss + memory.pss
        return rss, pss

    def metric(self, name: str, model: str) -> float:
        """The value of this model's sample on the metrics page; 0 if there is none."""
        return self.sample(name, model=model)

    def sample(self, name: str, **label: str) -> float:
        """The value of the sample with this label on the metrics page; 0 if there is none."""
        ((key, value),) = label.items()
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url) as page:
            for line in page.read().decode().splitlines():
                if line.startswith(f"{name}{{") and f'{key}="{value}"' in line:
                    return float(line.rpartition(" ")[2])
        return 0.0


class TextClient:
    """The calls of the tests."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.text = transformers_pb2_grpc.TransformersServiceStub(channel)
        self.worker = worker_pb2_grpc.ModelWorkerStub(channel)

    async def load(
        self, model_id: str, pipeline: str = "text-generation", **options: str
    ) -> tuple[list[int], worker_pb2.ModelInfo]:
        """Loads a model; the states that were seen, each once, and what it has become."""
        request = worker_pb2.LoadRequest(model_id=model_id, pipeline_type=pipeline, options=options)
        states: list[int] = []
        async for response in self.worker.Load(request):
            if response.state not in states:
                states.append(response.state)
        return states, response.model

    async def unload(self, model_id: str) -> None:
        await self.worker.Unload(worker_pb2.UnloadRequest(model_id=model_id))

    async def info(self, model_id: str) -> worker_pb2.ModelInfo:
        """What the service says of a model."""
        answer = await self.worker.List(worker_pb2.ListRequest())
        return next(model for model in answer.models if model.model_id == model_id)

    async def models(self) -> dict[str, int]:
        """States by model id."""
        answer = await self.worker.List(worker_pb2.ListRequest())
        return {model.model_id: model.state for model in answer.models}

    async def generate(self, **request: object) -> tuple[str, pb.TextResponse]:
        """The joined text and the last message of GenerateText."""
        text = ""
        async for response in self.text.GenerateText(pb.TextRequest(**request)):  # type: ignore[arg-type]
            text += response.text
        return text, response


@contextlib.contextmanager
def text_service(
    models: Path, folder: Path, settings: Mapping[str, str] | None = None
) -> Iterator[TextService]:
    """Starts both; they and all that they started are gone at the end."""
    provider_port, port, metrics_port = free_port(), free_port(), free_port()
    converted = folder / "converted"
    environment = {
        "TEXT_PORT": str(port),
        "TEXT_METRICS_PORT": str(metrics_port),
        "TEXT_FILE_PROVIDER_ADDR": f"127.0.0.1:{provider_port}",
        "TEXT_CACHE_DIR": str(folder / "cache"),
        "TEXT_CONVERTED_DIR": str(converted),
        "TEXT_LOG_STYLE": "text",
        "TEXT_DRAIN_SECONDS": "0",
        "TEXT_ABANDONED_LOAD_SECONDS": "0",
        **(settings or {}),
    }
    provider = ("-m", "tools.dev_provider", "--root", str(models), "--port", str(provider_port))
    with (folder / "text_svc.log").open("wb") as log:
        processes = [
            subprocess.Popen(
                (sys.executable, *command),
                cwd=ROOT,
                env=os.environ | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            for command in (provider, ("-m", "text_svc"))
        ]
    service = TextService(psutil.Process(processes[1].pid), port, metrics_port, models, converted)
    try:
        wait_for("listening", lambda: _listens(provider_port) and _listens(port))
        yield service
    finally:
        left = service.process.children(recursive=True) if service.process.is_running() else []
        for process in processes[::-1]:
            process.terminate()
        for process in processes[::-1]:
            process.wait(90)
        wait_for("the end of all children", lambda: not any(map(_alive, left)))


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
