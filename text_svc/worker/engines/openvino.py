"""Generation with OpenVINO GenAI's continuous batching on the CPU."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import random
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shared.errors import InternalError, InvalidModelError, OutOfMemoryError
from text_svc.formats.manifest import Manifest
from text_svc.link.json_lines import JsonLines
from text_svc.processes.launch import (
    WorkerReport,
    WorkerSpec,
)
from text_svc.worker.engines.base import (
    Generation,
    Limits,
    StepOutput,
)
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.tokenizers.fast import FastTokenizer

log = logging.getLogger(__name__)

# Tokens of one block of the key-value cache; fixed for CPUs.
BLOCK_TOKENS = 32
# What computes, by the option dtype, and the bytes of a number in the key-value cache.
PRECISIONS = {"auto": "f32", "float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
NUMBER_BYTES = {"f32": 4, "bf16": 2}
CLOSE_SECONDS = 5.0


def load(
    spec: WorkerSpec, metrics: EngineMetrics
) -> tuple[OpenVinoEngine, FastTokenizer, WorkerReport]:
    """The engine and the tokenizer of a spec, and what the model costs. Blocks.

    Raises:
        ServiceError: why it cannot be loaded.
    """
    folder = spec.converted
    manifest = Manifest.read(folder) if folder else None
    if folder is None or manifest is None:
        raise InvalidModelError(f"model {spec.model_id} is not converted")
    precision = PRECISIONS[spec.options.dtype]
    own = min(manifest.context, spec.options.max_length or manifest.context)
    block_bytes = BLOCK_TOKENS * manifest.cache_width * NUMBER_BYTES[precision]
    blocks = min(spec.cache_bytes // block_bytes, spec.max_running * blocks_of(own))
    if not blocks:
        raise OutOfMemoryError(
            f"a key-value cache of {spec.cache_bytes} bytes has no block of {block_bytes} bytes"
        )
    engine = OpenVinoEngine(
        folder,
        limits=Limits(
            context=min(own, blocks * BLOCK_TOKENS),
            running=spec.max_running,
            waiting=spec.max_waiting,
        ),
        end_tokens=manifest.end_tokens,
        cache_blocks=blocks,
        precision=precision,
        threads=spec.threads,
        metrics=metrics,
    )
    report = WorkerReport(ram_bytes=manifest.weight_bytes + blocks * block_bytes)
    return engine, FastTokenizer(folder), report


def blocks_of(tokens: int) -> int:
    """Blocks of the cache that so many tokens take."""
    return -(-tokens // BLOCK_TOKENS)


class OpenVinoEngine:
    """A converted model, stepped by `openvino_process`.

    An answer is let in when the cache has room for all that it may need, first come first served;
    so none is ever put back. Everything here runs on the event loop.

    Args:
        folder: made by `text_svc.convert`.
        limits: `limits.context` tokens fit into the cache.
        end_tokens: ids that end an answer.
        cache_blocks: blocks of BLOCK_TOKENS that the key-value cache has.
        precision: of the computation, "f32" or "bf16".
        threads: of the computation.
        metrics: of the model.
        on_death: called when the process ends unasked; no answer ends after that.

    Raises:
        InvalidModelError: OpenVINO cannot load the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limits: Limits,
        end_tokens: Sequence[int],
        cache_blocks: int,
        precision: str,
        threads: int,
        metrics: EngineMetrics,
        on_death: Callable[[], None] = lambda: os._exit(1),
    ) -> None:
        self.limits = limits
        self._end_tokens = list(end_tokens)
        self._free_blocks = cache_blocks
        self._numbers = itertools.count(1)
        self._waiting: deque[Generation] = deque()
        self._running: dict[Generation, int] = {}
        self._by_number: dict[int, Generation] = {}
        self._metrics = metrics
        self._on_death = on_death
        self._lines: JsonLines | None = None
        self._process = subprocess.Popen(  # noqa: S603  # its own module
            (sys.executable, "-m", "text_svc.worker.engines.openvino_process", str(os.getpid())),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._set_up(
            folder=str(folder),
            cache_blocks=cache_blocks,
            running=limits.running,
            precision=precision,
            threads=threads,
        )

    def _set_up(self, **setup: Any) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(setup).encode() + b"\n")
        reply = json.loads(self._process.stdout.readline() or '{"error": "its process ended"}')
        if "error" in reply:
            self._process.wait()
            log.error("OpenVINO cannot load the model", extra={"error": reply["error"]})
            raise InvalidModelError("OpenVINO cannot load the converted model")

    def submit(self, generation: Generation) -> None:
        if self._lines is None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._lines = JsonLines(
                self._process.stdin.fileno(),
                self._process.stdout.fileno(),
                self._on_message,
                self._on_death,
            )
        self._waiting.append(generation)
        self._admit()

    def cancel(self, generation: Generation) -> None:
        if generation in self._running:
            assert self._lines is not None, "it was submitted"
            self._lines.send({"cancel": self._forget(generation)})
            self._admit()
        elif generation in self._waiting:
            self._waiting.remove(generation)
            self._admit()

    async def close(self) -> None:
        if self._lines:
            self._lines.close()
        assert self._process.stdin is not None
        self._process.stdin.close()  # its sign to end
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.limits.running:
            generation = self._waiting[0]
            if _blocks(generation) > self._free_blocks:
                break
            self._waiting.popleft()
            self._begin(generation)
        self._metrics.generations(len(self._running), len(self._waiting))

    def _begin(self, generation: Generation) -> None:
        assert self._lines is not None, "made by the first submit"
        generation.start()
        number = next(self._numbers)
        self._running[generation], self._by_number[number] = number, generation
        self._free_blocks -= _blocks(generation)
        self._lines.send(
            {"id": number, "prompt": generation.prompt, "config": self._config(generation)}
        )

    def _forget(self, generation: Generation) -> int:
        number = self._running.pop(generation)
        del self._by_number[number]
        self._free_blocks += _blocks(generation)
        return number

    def _config(self, generation: Generation) -> dict[str, Any]:
        sampling = generation.sampling
        config: dict[str, Any] = {
            "max_new_tokens": sampling.max_new_tokens,
            "stop_token_ids": self._end_tokens,
            "repetition_penalty": sampling.repetition_penalty,
        }
        if sampling.temperature:
            seed = random.getrandbits(63) if sampling.seed is None else sampling.seed
            config |= {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "rng_seed": seed,
            }
            if sampling.top_k:
                config["top_k"] = sampling.top_k
        return config

    def _on_message(self, message: dict[str, Any]) -> None:
        # A number that is not known belongs to an answer that was cancelled meanwhile.
        if "error" in message and (generation := self._by_number.get(message["id"])):
            log.error("an answer was refused", extra={"error": message["error"]})
            self._forget(generation)
            generation.put(
                StepOutput((), 0, error=InternalError("the engine refused this request"))
            )
        if "steps" in message:
            self._metrics.step(len(message["steps"]))
        for number, tokens, reason in message.get("steps", ()):
            if generation := self._by_number.get(number):
                if reason:
                    self._forget(generation)
                count = len(tokens)
                generation.put(
                    StepOutput(tokens[:-1] if reason == "stop" else tokens, count, reason)
                )
        self._admit()


def _blocks(generation: Generation) -> int:
    return blocks_of(len(generation.prompt) + generation.sampling.max_new_tokens)
