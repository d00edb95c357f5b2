"""Our embeddings through Envoy, called by a tonic client and by a Python client."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from ml import model_management_pb2, model_management_pb2_grpc
from ml import transformers_pb2 as pb
from shared.model_ids import folder_name
from tests.bench.embeddings_types import FOLDER, Calls, PythonCalls
from tests.bench.rust_client import PYTHON, TONIC, RustClient
from tests.support.stack import CONVERTED, MODELS, Stack, start_stack


def model_id(dtype: str) -> str:
    """The name under which ours serves a dtype."""
    return f"bench/minilm-{dtype}"


def converted_folder(dtype: str) -> Path:
    """The conversion that text_svc has made for a dtype.

    Raises:
        FileNotFoundError: it has made none.
    """
    found = list((CONVERTED / folder_name(model_id(dtype))).glob("feature-extraction-*"))
    if not found:
        raise FileNotFoundError(f"no conversion for {dtype}: let ours run first")
    return max(found, key=lambda path: path.stat().st_mtime)


class Ours:
    """GenerateEmbeddings through Envoy; one stack serves the model under a name a precision.

    Args:
        dtypes: what the stack loads; `arms` has one way to embed for each and each client.
        rust: the tonic client, if there is one.
        python: whether the Python client calls too.
    """

    def __init__(self, dtypes: Sequence[str], rust: RustClient | None, *, python: bool) -> None:
        self.arms: list[_PythonArm] = []
        for dtype in dtypes:
            if rust:
                self.arms.append(_RustArm(dtype, rust))
            if python or not rust:
                self.arms.append(_PythonArm(dtype))
        self._folder = Path(tempfile.mkdtemp(prefix="bench-"))
        self._stack: Stack | None = None

    async def start(self) -> None:
        models = self._folder / "models"
        for name in {arm.model for arm in self.arms}:
            _link(FOLDER, models / "text" / name)
        _link(MODELS / "vision", models / "vision")
        self._stack = start_stack(self._folder / "run", "--models", str(models))
        await asyncio.to_thread(self._stack.wait_listening)
        await asyncio.to_thread(self._stack.wait_serving)
        self._channel = self._stack.aio_channel()
        stub = model_management_pb2_grpc.ModelManagementServiceStub(self._channel)
        for arm in self.arms:
            await stub.LoadModel(
                model_management_pb2.LoadModelRequest(
                    model_id=arm.model,
                    pipeline_type="feature-extraction",
                    options={"dtype": arm.dtype},
                )
            )
            arm.connect(self._stack.addresses["envoy"], self._channel)

    def pids(self) -> Sequence[int]:
        """Of text_svc, which has all models, and Envoy."""
        assert self._stack
        return [self._stack.pids[name] for name in ("text_svc", "envoy")]

    async def stop(self) -> None:
        await self._channel.close()
        if self._stack:
            await asyncio.to_thread(self._stack.stop)
        shutil.rmtree(self._folder, ignore_errors=True)


class _PythonArm(PythonCalls):
    """All callers share one channel."""

    client = PYTHON

    def __init__(self, dtype: str) -> None:
        self.name = f"ours, {dtype}"
        self.dtype = dtype
        self.model = model_id(dtype)

    def pids(self) -> Sequence[int]:
        return []

    def connect(self, _address: str, channel: grpc.aio.Channel) -> None:
        # Bytes: the client shares the machine, and must not cost more than a client has to.
        self._call: Any = channel.unary_unary("/ml.TransformersService/GenerateEmbeddings")

    async def start(self) -> None:
        """The stack is started by `Ours`."""

    async def embed(self, texts: Sequence[str]) -> None:
        await self._answer(texts)

    async def vectors(self, texts: Sequence[str]) -> np.ndarray:
        answer = pb.GeneratedEmbeddingsResponse.FromString(await self._answer(texts))
        return np.array([each.values for each in answer.embeddings], np.float32)

    async def stop(self) -> None:
        """The stack is stopped by `Ours`."""

    async def _answer(self, texts: Sequence[str]) -> bytes:
        request = pb.GenerateEmbeddingsRequest(texts=texts, model=self.model)
        answer: bytes = await self._call(request.SerializeToString())
        return answer


class _RustArm(_PythonArm):
    """As many callers of a tonic client, which share its channel too."""

    client = TONIC

    def __init__(self, dtype: str, rust: RustClient) -> None:
        super().__init__(dtype)
        self._rust = rust

    def connect(self, address: str, channel: grpc.aio.Channel) -> None:
        super().connect(address, channel)
        self._endpoint = f"http://{address}"

    async def calls(
        self, texts: Sequence[str], *, callers: int, batch: int, seconds: float
    ) -> Calls:
        outcome = await asyncio.to_thread(
            self._rust.run,
            "embeddings",
            endpoint=self._endpoint,
            model=self.model,
            texts=list(texts),
            callers=callers,
            batch=batch,
            seconds=seconds,
            connections=1,
        )
        return Calls(outcome["latencies"], outcome["seconds"], outcome["client_cpu_seconds"])


def _link(source: Path, target: Path) -> None:
    """The same files under another name, without a copy of them."""
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except OSError:  # another file system
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
