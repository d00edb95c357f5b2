"""Other servers of the same model, each in an environment of its own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.environments import environment
from tests.bench.rust_client import PYTHON_HTTP
from tests.bench.text_peers import MODEL_FOLDER
from tests.bench.text_types import Stretch, as_chat
from text_svc.processes.spawn import library_environment

START_SECONDS = 180.0
# Made once; torch is the one of this project.
SERVE_PACKAGES = ("transformers[serving]==5.23.0",)
LLAMA_PACKAGES = ("xllamacpp==2026.10.11549",)

_LLAMA = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_parallel, params.n_ctx, params.cont_batching = 16, 16 * 1024, True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[3])
server = xllamacpp.Server(params)
sys.stdin.read()
"""


class HttpPeer:
    """A server that speaks OpenAI's protocol, started by a command."""

    name = ""
    client = PYTHON_HTTP

    def command(self, port: int) -> Sequence[str]:
        """What starts it; may take minutes the first time."""
        raise NotImplementedError

    async def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        command = await asyncio.to_thread(self.command, self._port)
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=library_environment(os.cpu_count() or 1),
        )
        async with asyncio.timeout(START_SECONDS):
            while not await self._answers():
                await asyncio.sleep(0.5)

    def pids(self) -> Sequence[int]:
        return [self._process.pid]

    async def stretch(self, questions: Sequence[str], tokens: int, system: str = "") -> Stretch:
        start = time.perf_counter()
        chats = [as_chat(each, system) for each in questions]
        return Stretch(await asyncio.gather(*(self._one(each, tokens, start) for each in chats)))

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _answers(self) -> bool:
        if self._process.returncode is not None:
            raise RuntimeError(f"{self.name} has ended with {self._process.returncode}")
        try:
            return len(await self._one(as_chat("Hello", ""), 2, 0.0)) > 0
        except OSError:
            return False

    async def _one(self, messages: list[dict[str, Any]], tokens: int, start: float) -> list[float]:
        """Arrival times of the pieces with text of one streamed chat completion."""
        request = {
            "model": str(MODEL_FOLDER),
            "messages": messages,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
        }
        body = json.dumps(request).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        times: list[float] = []
        try:
            writer.write(head.encode() + body)
            async for line in reader:
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:]).get("choices") or [{}]
                    if choices[0].get("delta", {}).get("content"):
                        times.append(time.perf_counter() - start)
                elif line.startswith(b"data: [DONE]"):
                    break
        finally:
            writer.close()
        return times


class TransformersServe(HttpPeer):
    """`transformers serve --continuous-batching`."""

    name = "transformers serve, float32"

    def command(self, port: int) -> Sequence[str]:
        python = environment("serve", SERVE_PACKAGES)
        return (
            *(str(python.with_name("transformers")), "serve", str(MODEL_FOLDER)),
            *("--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)),
            *("--continuous-batching", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "512"),
        )


class LlamaCpp(HttpPeer):
    """llama.cpp's own server, from the package xllamacpp.

    Args:
        weights: of the GGUF file, as its format calls them.
        file: makes or finds it.
    """

    def __init__(self, weights: str, file: Callable[[], Path]) -> None:
        self.name = f"llama.cpp, {weights}"
        self._file = file

    def command(self, port: int) -> Sequence[str]:
        python = environment("xllamacpp", LLAMA_PACKAGES)
        return (str(python), "-c", _LLAMA, str(self._file()), str(port), str(os.cpu_count() or 1))
