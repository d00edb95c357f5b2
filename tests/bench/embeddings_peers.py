"""What the embedding benchmark compares ours with: a library in process, and another server."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tests.bench.embeddings_types import FOLDER, PythonCalls
from tests.bench.rust_client import IN_PROCESS, PYTHON_HTTP
from tests.support.stack import wait_for
from tools.models import REPOSITORY

INFINITY_PINS = (
    "infinity-emb[server,torch]==0.0.78",
    *("transformers<5", "sentence-transformers<5.2", "huggingface_hub<1"),
)
INFINITY_PORT = 7997
MAX_CALLERS = 64


class SentenceTransformers(PythonCalls):
    """`encode` in this process, as its users call it."""

    name = "sentence-transformers"
    client = IN_PROCESS

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


class Infinity(PythonCalls):
    """infinity-emb in an environment of its own, over HTTP with connections that stay open."""

    name = "infinity"
    client = PYTHON_HTTP

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


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
