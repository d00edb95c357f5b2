"""Other servers of the same model, each in an environment of its own."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.environments import environment
from tests.bench.rust_client import PYTHON_HTTP
from tests.bench.text_peers import MODEL_FOLDER, Ours
from tests.bench.text_types import Stretch, as_chat
from tests.support.processes import free_port
from text_svc.processes.spawn import library_environment

START_SECONDS = 180.0
# Made once; torch is the one of this project.
SERVE_PACKAGES = ("transformers[serving]==5.23.0",)
VLLM_PACKAGES = ("vllm==0.33.0",)
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


async def http_stretch(
    address: str, model: str, chats: Sequence[list[dict[str, Any]]], tokens: int
) -> Stretch:
    """Streamed chat completions of OpenAI's protocol, all at once."""
    start = time.perf_counter()
    asked = (_http_chat(address, model, chat, tokens, start) for chat in chats)
    return Stretch(await asyncio.gather(*asked))


async def _http_chat(
    address: str, model: str, messages: list[dict[str, Any]], tokens: int, start: float
) -> list[float]:
    """Arrival times of the pieces with text; the last comes again for tokens without one.

    Raises:
        OSError: the server cannot be reached, or gives no stream.
    """
    request = {
        "model": model,
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
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    times: list[float] = []
    try:
        writer.write(head.encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            raise OSError(f"{status.decode().strip()}: {(await reader.read(2000)).decode()[-300:]}")
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


class ByHttp:
    """Our services asked as the other servers are, to be compared with them."""

    client = PYTHON_HTTP

    def __init__(self, ours: Ours) -> None:
        self.name = ours.name
        self._ours = ours

    async def start(self) -> None:
        """The services are those of the other."""

    def pids(self) -> Sequence[int]:
        return []

    async def stretch(self, questions: Sequence[str], tokens: int, system: str = "") -> Stretch:
        chats = [as_chat(each, system) for each in questions]
        return await http_stretch(self._ours.address, self._ours.model, chats, tokens)

    async def stop(self) -> None:
        """The other stops them."""


class HttpPeer:
    """A server that speaks OpenAI's protocol, started by a command."""

    name = ""
    client = PYTHON_HTTP
    model = str(MODEL_FOLDER)

    def command(self, port: int) -> Sequence[str]:
        """What starts it; may take minutes the first time."""
        raise NotImplementedError

    async def start(self) -> None:
        self._port = free_port()
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
        chats = [as_chat(each, system) for each in questions]
        return await http_stretch(f"127.0.0.1:{self._port}", self.model, chats, tokens)

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    async def _answers(self) -> bool:
        if self._process.returncode is not None:
            raise RuntimeError(f"{self.name} has ended with {self._process.returncode}")
        try:
            return all((await self.stretch(["Hello"], 2)).arrivals)
        except OSError:
            return False


class TransformersServe(HttpPeer):
    """`transformers serve --continuous-batching`."""

    def __init__(self, dtype: str = "float32", device: str = "cpu") -> None:
        self.name = f"transformers serve, {dtype}"
        self._dtype, self._device = dtype, device

    def command(self, port: int) -> Sequence[str]:
        python = environment("serve", SERVE_PACKAGES)
        return (
            *(str(python.with_name("transformers")), "serve", str(MODEL_FOLDER)),
            *("--device", self._device, "--dtype", self._dtype),
            *("--host", "127.0.0.1", "--port", str(port)),
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


class Vllm(HttpPeer):
    """vLLM's server, which needs a CUDA device."""

    name = "vLLM, bfloat16"

    def command(self, port: int) -> Sequence[str]:
        python = environment("vllm", VLLM_PACKAGES)
        return (
            *(str(python.with_name("vllm")), "serve", str(MODEL_FOLDER), "--dtype", "bfloat16"),
            *("--host", "127.0.0.1", "--port", str(port), "--gpu-memory-utilization", "0.3"),
        )
