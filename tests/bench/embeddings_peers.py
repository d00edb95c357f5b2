"""The ways to embed that the benchmark compares: in process, over the wire, and another server."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ml import model_management_pb2, model_management_pb2_grpc
from ml import transformers_pb2 as pb
from tests.support.stack import MODELS, Stack, start_stack, wait_for
from tools.models import REPOSITORY

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
FOLDER = MODELS / "text" / MODEL
INFINITY_PINS = (
    "infinity-emb[server,torch]==0.0.78",
    *("transformers<5", "sentence-transformers<5.2", "huggingface_hub<1"),
)
INFINITY_PORT = 7997
MAX_CALLERS = 64


class Embedding(Protocol):
    """One way to embed."""

    name: str

    async def start(self) -> None:
        """Makes it ready; the first call afterwards is as fast as the others."""

    async def embed(self, texts: Sequence[str]) -> None:
        """One caller's call."""

    async def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """The same, with the vectors, for a check of what is measured."""

    async def stop(self) -> None:
        """Frees everything."""


class SentenceTransformers:
    """`encode` in this process, as its users call it."""

    name = "sentence-transformers"

    async def start(self) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(FOLDER), device="cpu")

    async def embed(self, texts: Sequence[str]) -> None:
        await self.vectors(texts)

    async def vectors(self, texts: Sequence[str]) -> np.ndarray:
        vectors: np.ndarray = await asyncio.to_thread(
            self._model.encode, list(texts), show_progress_bar=False
        )
        return vectors

    async def stop(self) -> None:
        del self._model


class Ours:
    """GenerateEmbeddings through Envoy; one stack serves the model under a name a precision.

    Args:
        dtypes: what the stack loads; `arms` has one way to embed for each.
    """

    def __init__(self, dtypes: Sequence[str]) -> None:
        self.arms = [_OurArm(dtype) for dtype in dtypes]
        self._folder = Path(tempfile.mkdtemp(prefix="bench-"))
        self._stack: Stack | None = None

    async def start(self) -> None:
        models = self._folder / "models"
        for arm in self.arms:
            _link(FOLDER, models / "text" / arm.model)
        _link(MODELS / "vision", models / "vision")
        self._stack = start_stack(self._folder / "run", "--models", str(models))
        await asyncio.to_thread(self._stack.wait_listening)
        await asyncio.to_thread(self._stack.wait_serving)
        self._channel = self._stack.aio_channel()
        stub = model_management_pb2_grpc.ModelManagementServiceStub(self._channel)
        # Bytes: the client shares the machine, and must not cost more than a client has to.
        call = self._channel.unary_unary("/ml.TransformersService/GenerateEmbeddings")
        for arm in self.arms:
            arm.call = call
            await stub.LoadModel(
                model_management_pb2.LoadModelRequest(
                    model_id=arm.model,
                    pipeline_type="feature-extraction",
                    options={"dtype": arm.dtype},
                )
            )

    async def stop(self) -> None:
        await self._channel.close()
        if self._stack:
            await asyncio.to_thread(self._stack.stop)
        shutil.rmtree(self._folder, ignore_errors=True)


class _OurArm:
    def __init__(self, dtype: str) -> None:
        self.name = f"ours, {dtype}"
        self.dtype = dtype
        self.model = f"bench/minilm-{dtype}"
        self.call: Any = None

    async def start(self) -> None:
        """The stack is started by `Ours`."""

    async def embed(self, texts: Sequence[str]) -> None:
        request = pb.GenerateEmbeddingsRequest(texts=texts, model=self.model)
        await self.call(request.SerializeToString())

    async def vectors(self, texts: Sequence[str]) -> np.ndarray:
        request = pb.GenerateEmbeddingsRequest(texts=texts, model=self.model)
        answer = pb.GeneratedEmbeddingsResponse.FromString(
            await self.call(request.SerializeToString())
        )
        return np.array([each.values for each in answer.embeddings], np.float32)

    async def stop(self) -> None:
        """The stack is stopped by `Ours`."""


class Infinity:
    """infinity-emb in an environment of its own, over HTTP with connections that stay open."""

    name = "infinity"

    def __init__(self, environments: Path = REPOSITORY / "run" / "bench-envs") -> None:
        self._python = environments / "infinity" / "bin" / "python"
        self._local = threading.local()
        # As many as callers, which the event loop's own pool would not have.
        self._threads = ThreadPoolExecutor(MAX_CALLERS)

    async def start(self) -> None:
        if not self._python.exists():
            folder = self._python.parent.parent
            await asyncio.to_thread(_run, sys.executable, "-m", "venv", str(folder))
            pip = (str(self._python), "-m", "pip", "install", "-q", "torch==2.13.0+cpu")
            await asyncio.to_thread(_run, *pip, *INFINITY_PINS)
        command = (
            *(str(self._python.parent / "infinity_emb"), "v2", "--model-id", str(FOLDER)),
            *("--engine", "torch", "--device", "cpu", "--host", "127.0.0.1"),
            *("--port", str(INFINITY_PORT), "--no-bettertransformer"),
        )
        self._process = await asyncio.to_thread(
            subprocess.Popen,
            command,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        await asyncio.to_thread(wait_for, "the start of infinity", self._ready, 120)

    async def embed(self, texts: Sequence[str]) -> None:
        await self._answer(texts)

    async def vectors(self, texts: Sequence[str]) -> np.ndarray:
        answer = json.loads(await self._answer(texts))
        return np.array([each["embedding"] for each in answer["data"]], np.float32)

    async def stop(self) -> None:
        self._process.terminate()
        await asyncio.to_thread(self._process.wait)

    def _ready(self) -> bool:
        try:
            return bool(self._post(["ready"]))
        except (OSError, http.client.HTTPException):
            self._local.connection = None
            return False

    async def _answer(self, texts: Sequence[str]) -> bytes:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._post_again, texts)

    def _post_again(self, texts: Sequence[str]) -> bytes:
        """Once more on a new connection where the server has closed an idle one."""
        try:
            return self._post(texts)
        except (ConnectionError, http.client.HTTPException):
            self._local.connection = None
            return self._post(texts)

    def _post(self, texts: Sequence[str]) -> bytes:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", INFINITY_PORT, timeout=300)
            self._local.connection = connection
        body = json.dumps({"model": str(FOLDER), "input": list(texts)})
        connection.request("POST", "/embeddings", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content: bytes = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise OSError(f"infinity answers {answer.status}: {content[:200]!r}")
        return content


def _link(source: Path, target: Path) -> None:
    """The same files under another name, without a copy of them."""
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except OSError:  # another file system
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
