"""What the embedding benchmark compares ours with: libraries in process, and another server."""

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
from typing import Any

import numpy as np

from tests.bench.embeddings_ours import converted_folder
from tests.bench.embeddings_types import FOLDER, PythonCalls
from tests.bench.environments import environment
from tests.bench.rust_client import IN_PROCESS, PYTHON_HTTP
from tests.support.stack import wait_for

INFINITY_PACKAGES = (
    "infinity-emb[server,torch]==0.0.78",
    *("transformers<5", "sentence-transformers<5.2", "huggingface_hub<1"),
)
ONNX_PACKAGES = ("optimum-onnx==0.1.0", "onnxruntime==1.31.1")
INFINITY_PORT = 7997
MAX_CALLERS = 64
# Of one line of a child.
MAX_LINE_BYTES = 64 << 20
DIGITS = tuple(b"%d" % digit for digit in range(10))


class Child(PythonCalls):
    """A library in a process of its own.

    Args:
        name: what tables call it.
        backend: of `embeddings_child`.
        dtype: of the model.
        packages: it needs besides the project's own.
    """

    client = IN_PROCESS

    def __init__(self, name: str, backend: str, dtype: str, packages: Sequence[str] = ()) -> None:
        self.name, self.dtype = f"{name}, {dtype}", dtype
        self._backend, self._packages = backend, packages

    async def start(self) -> None:
        python = sys.executable
        if self._packages:
            python = str(await asyncio.to_thread(environment, self._backend, self._packages))
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self._process = await asyncio.create_subprocess_exec(
            *(python, str(Path(__file__).with_name("embeddings_child.py"))),
            *(self._backend, str(self._model()), self.dtype),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            limit=MAX_LINE_BYTES,
        )
        await self._answer()

    def pids(self) -> Sequence[int]:
        return [self._process.pid]

    async def embed(self, texts: Sequence[str]) -> None:
        await self._ask(texts)

    async def vectors(self, texts: Sequence[str]) -> np.ndarray:
        return np.array(await self._ask({"vectors": texts}), np.float32)

    async def stop(self) -> None:
        self._process.kill()
        await self._process.wait()
        self._folder.cleanup()

    def _model(self) -> Path:
        """The model in a folder of its own, since backends write their exports beside it."""
        copy = Path(self._folder.name) / "model"
        shutil.copytree(FOLDER, copy)
        return copy

    async def _ask(self, asked: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        return await self._answer()

    async def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        while line and not line.startswith((b"[", b'"', *DIGITS)):  # what a library prints
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} has ended")
        return json.loads(line)


class Conversion(Child):
    """The engine of ours in process, with the conversion that ours has made."""

    def __init__(self, dtype: str) -> None:
        super().__init__("OpenVINO", "conversion", dtype)

    def _model(self) -> Path:
        return converted_folder(self.dtype)


def sentence_transformers(dtype: str, backend: str = "torch") -> Child:
    """`encode` with a backend."""
    name = "sentence-transformers" + ("" if backend == "torch" else f" on {backend}")
    return Child(name, backend, dtype, ONNX_PACKAGES if backend == "onnx" else ())


class Infinity(PythonCalls):
    """infinity-emb in an environment of its own, over HTTP with connections that stay open."""

    name = "infinity, float32"
    client = PYTHON_HTTP

    def __init__(self) -> None:
        self._local = threading.local()
        # As many as callers, which the event loop's own pool would not have.
        self._threads = ThreadPoolExecutor(MAX_CALLERS)

    async def start(self) -> None:
        python = await asyncio.to_thread(environment, "infinity", INFINITY_PACKAGES)
        command = (
            *(str(python.with_name("infinity_emb")), "v2", "--model-id", str(FOLDER)),
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

    def pids(self) -> Sequence[int]:
        return [self._process.pid]

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
