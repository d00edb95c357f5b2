"""The ways to generate that the text benchmark compares: in process, and over the wire."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from ml import model_management_pb2, model_management_pb2_grpc
from ml import transformers_pb2 as pb
from shared.model_ids import folder_name
from tests.bench.rust_client import IN_PROCESS, PYTHON, TONIC, RustClient
from tests.bench.text_types import MODEL, Stretch, as_chat
from tests.support.stack import CONVERTED, MODELS, Stack, start_stack
from text_svc.processes.spawn import library_environment
from text_svc.worker.generation.chat_template import ChatTemplate
from text_svc.worker.tokenizers.fast import FastTokenizer
from tools import litert_files

MODEL_FOLDER = MODELS / "text" / MODEL
# Of one line of a child.
MAX_LINE_BYTES = 64 << 20


class Ours:
    """This project's services: a client's stream through Envoy to text_svc.

    Args:
        dtype: of the model.
        engine: of the model.
        rust: the tonic client, with a connection a caller; without it Python calls, over one.
        options: more of the load.
    """

    model = MODEL

    def __init__(
        self, dtype: str, engine: str = "auto", rust: RustClient | None = None, **options: str
    ) -> None:
        self.name = f"ours, {dtype}" + ("" if engine == "auto" else f", {engine}")
        self.client = TONIC if rust else PYTHON
        self._options = {"dtype": dtype, "engine": engine, **options}
        self._rust = rust
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self._stack: Stack | None = None

    async def start(self) -> None:
        self._stack = start_stack(Path(self._folder.name))
        await asyncio.to_thread(self._stack.wait_listening)
        await asyncio.to_thread(self._stack.wait_serving)
        self._channel = self._stack.aio_channel()
        stub = model_management_pb2_grpc.ModelManagementServiceStub(self._channel)
        await stub.LoadModel(
            model_management_pb2.LoadModelRequest(
                model_id=self.model, pipeline_type="text-generation", options=self._options
            )
        )
        # Bytes: the client shares the machine, and must not cost more than a client has to.
        self._chat: Any = self._channel.unary_stream("/ml.TransformersService/ChatCompletion")

    def pids(self) -> Sequence[int]:
        assert self._stack
        return [self._stack.pids[name] for name in ("text_svc", "envoy")]

    @property
    def address(self) -> str:
        """Of Envoy."""
        assert self._stack
        return self._stack.addresses["envoy"]

    async def stretch(self, questions: Sequence[str], tokens: int, system: str = "") -> Stretch:
        if not self._rust:
            return await self._python_stretch(questions, tokens, system)
        outcome = await asyncio.to_thread(
            self._rust.run,
            "text",
            endpoint=f"http://{self.address}",
            rpc="chat",
            model=self.model,
            system=system,
            questions=list(questions),
            max_tokens=tokens,
            temperature=0.0,
        )
        return Stretch([arrivals(each["messages"], each["tokens"]) for each in outcome["callers"]])

    async def _python_stretch(self, questions: Sequence[str], tokens: int, system: str) -> Stretch:
        requests = [
            pb.ChatRequest(
                messages=[pb.ChatMessage(**message) for message in as_chat(question, system)],
                model=self.model,
                temperature=0,
                max_tokens=tokens,
            ).SerializeToString()
            for question in questions
        ]
        start = time.perf_counter()
        return Stretch(await asyncio.gather(*(self._one(each, start) for each in requests)))

    async def _one(self, request: bytes, start: float) -> list[float]:
        times, call = [], self._chat(request)
        while (message := await call.read()) is not grpc.aio.EOF:
            times.append(time.perf_counter() - start)
            last = message
        return arrivals(times, pb.ChatResponse.FromString(last).usage.generated_tokens)

    async def stop(self) -> None:
        if self._stack:
            await self._channel.close()
            await asyncio.to_thread(self._stack.stop)
        self._folder.cleanup()


class OursLiteRt(Ours):
    """The same with a .litertlm of this model, which LiteRT-LM runs.

    Args:
        rust: as for `Ours`.
    """

    model = litert_files.LANGUAGE_MODEL

    def __init__(self, rust: RustClient | None = None) -> None:
        super().__init__("its own weights", "litert", rust)

    async def start(self) -> None:
        self._options = {"file": (await asyncio.to_thread(litert_file)).name}
        await super().start()


def arrivals(messages: Sequence[float], tokens: int) -> list[float]:
    """When each token came: a message may hold the text of two tokens, and the last has none."""
    return [*messages[:-1], *[messages[-1]] * (tokens - len(messages) + 1)]


def converted_folder(dtype: str) -> Path:
    """The conversion that text_svc has made for a dtype.

    Raises:
        FileNotFoundError: it has made none.
    """
    kind = "int8" if dtype == "int8" else "float"
    found = list((CONVERTED / folder_name(MODEL)).glob(f"text-generation-{kind}-*"))
    if not found:
        raise FileNotFoundError(f"no conversion of {MODEL} for {dtype}: let ours run first")
    return max(found, key=lambda path: path.stat().st_mtime)


class Child:
    """A library called in a process of its own.

    Args:
        name: what tables call it.
        engine: of `text_child`.
        dtype: what it computes with.
        device: what computes, where the engine has a choice.
        folder: makes or finds the model; may take a minute the first time.
    """

    client = IN_PROCESS

    def __init__(
        self, name: str, engine: str, dtype: str, folder: Callable[[], Path], device: str = "cpu"
    ) -> None:
        self.name = f"{name}, {dtype}"
        self._engine, self._folder = engine, folder
        self._dtype, self._device = dtype, device
        self._tokenizer = FastTokenizer(MODEL_FOLDER)
        self._template = ChatTemplate(
            self._tokenizer.chat_template, self._tokenizer.special_tokens, 1 << 20
        )

    async def start(self) -> None:
        folder = await asyncio.to_thread(self._folder)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.bench.text_child"),
            *(self._engine, str(folder), self._dtype, self._device),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=library_environment(os.cpu_count() or 1),
            limit=MAX_LINE_BYTES,
        )
        await self._answer()

    def pids(self) -> Sequence[int]:
        return [self._process.pid]

    async def stretch(self, questions: Sequence[str], tokens: int, system: str = "") -> Stretch:
        texts = [await self._template.render(as_chat(each, system)) for each in questions]
        prompts = [self._tokenizer.encode(each, special=False) for each in texts]
        line = json.dumps({"texts": texts, "prompts": prompts, "tokens": tokens}) + "\n"
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())
        return Stretch(await self._answer())

    async def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} has ended")
        return json.loads(line)

    async def stop(self) -> None:
        await self._template.close()
        self._process.kill()
        await self._process.wait()


def openvino_genai(dtype: str) -> Child:
    """OpenVINO GenAI with the conversion that ours has made."""
    return Child("OpenVINO GenAI", "openvino", dtype, partial(converted_folder, dtype))


def generate(dtype: str = "float32", device: str = "cpu") -> Child:
    """transformers' `generate`."""
    return Child("transformers generate", "generate", dtype, lambda: MODEL_FOLDER, device)


def litert_lm() -> Child:
    """LiteRT-LM with its own file."""
    return Child("LiteRT-LM", "litert_lm", "its own weights", litert_file)


def litert_file() -> Path:
    """The .litertlm file of the model.

    Raises:
        FileNotFoundError: there is none.
    """
    name = litert_files.language_model()
    if name is None:
        raise FileNotFoundError(f"no .litertlm: {litert_files.VARIABLE} names one")
    return MODELS / "text" / litert_files.LANGUAGE_MODEL / name
