"""Generation with OpenVINO GenAI's continuous batching on the CPU."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino_genai import (
    ContinuousBatchingPipeline,
    GenerationConfig,
    GenerationFinishReason,
    SchedulerConfig,
)

from shared.errors import InternalError, InvalidModelError, OutOfMemoryError
from text_svc.export.manifest import Manifest
from text_svc.launch import Launch, Report
from text_svc.loading import loading_errors
from text_svc.worker.engine import Answer, FinishReason, Limits, Step

log = logging.getLogger(__name__)

# Tokens of one block of the key-value cache; fixed for CPUs.
BLOCK_TOKENS = 32
# Tokens that one step works on: a long prompt is cut, so that running answers do not wait for it.
STEP_TOKENS = 256
# Rounds of the event loop between two steps, in which the tokens of the first reach the wire.
LOOP_ROUNDS = 6
# What computes, by the option dtype, and the bytes of a number in the key-value cache.
PRECISIONS = {"auto": "f32", "float32": "f32", "bfloat16": "bf16", "int8": "f32"}
NUMBER_BYTES = {"f32": 4, "bf16": 2}

_REASONS: dict[Any, FinishReason] = {
    GenerationFinishReason.STOP: "stop",
    GenerationFinishReason.LENGTH: "length",
}


def load(launch: Launch) -> tuple[OpenVinoEngine, Report]:
    """The engine of a launch command, and what its model costs. Blocks.

    Raises:
        ServiceError: why it cannot be loaded.
    """
    folder = launch.converted
    manifest = Manifest.read(folder) if folder else None
    if folder is None or manifest is None:
        raise InvalidModelError(f"model {launch.model_id} is not converted")
    precision = PRECISIONS[launch.options.dtype]
    own = min(manifest.context, launch.options.max_length or manifest.context)
    block_bytes = BLOCK_TOKENS * manifest.cache_width * NUMBER_BYTES[precision]
    blocks = min(launch.cache_bytes // block_bytes, launch.max_running * blocks_of(own))
    limits = Limits(
        context=min(own, blocks * BLOCK_TOKENS),
        running=launch.max_running,
        waiting=launch.max_waiting,
    )
    if not blocks:
        raise OutOfMemoryError(
            f"a key-value cache of {launch.cache_bytes} bytes has no block of {block_bytes} bytes"
        )
    with loading_errors(launch.model_id, folder):
        engine = OpenVinoEngine(
            folder,
            limits=limits,
            end_tokens=manifest.end_tokens,
            cache_blocks=blocks,
            precision=precision,
            threads=launch.threads,
        )
    return engine, Report(ram_bytes=manifest.weight_bytes + blocks * block_bytes)


class OpenVinoEngine:
    """A converted model. One thread owns the pipeline and calls its `step`.

    Requests and cancellations reach the thread through a deque; what a step made goes back in one
    call. `step` of OpenVINO GenAI 2026.4 keeps Python's interpreter lock, so the thread gives the
    event loop its turn between two steps.

    Args:
        folder: made by `text_svc.export`.
        limits: answers at once; `limits.context` fits into the cache.
        end_tokens: ids that end an answer.
        cache_blocks: blocks of BLOCK_TOKENS that the key-value cache has.
        precision: of the computation, "f32" or "bf16".
        threads: of the computation.

    Raises:
        RuntimeError: OpenVINO cannot load the folder.
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
    ) -> None:
        self.limits = limits
        self.end_tokens = tuple(end_tokens)
        scheduler = SchedulerConfig()
        scheduler.num_kv_blocks = cache_blocks
        scheduler.max_num_seqs = limits.running
        scheduler.max_num_batched_tokens = max(STEP_TOKENS, limits.running)
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
        self._pipeline = ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)
        self._free_blocks = cache_blocks
        self._commands: deque[tuple[Answer, bool]] = deque()
        self._wake = threading.Event()
        self._turn = threading.Event()
        self._closed = False
        # The thread's own.
        self._ids = itertools.count()
        self._waiting: deque[Answer] = deque()
        self._running: dict[Answer, _Running] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)

    def submit(self, answer: Answer) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._thread.start()
        self._commands.append((answer, True))
        self._wake.set()

    def cancel(self, answer: Answer) -> None:
        self._commands.append((answer, False))
        self._wake.set()

    async def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._turn.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        """The thread: commands, a step, its results, the loop's turn, and again."""
        self._serve()
        self._commands.extend((answer, False) for answer in list(self._running))
        self._obey()

    def _serve(self) -> None:
        while not self._closed:
            if not self._running and not self._waiting:
                self._wake.wait()
            self._wake.clear()
            self._obey()
            self._admit()
            if not self._running:
                continue
            try:
                self._pipeline.step()
                results = [(answer, self._read(answer)) for answer in list(self._running)]
            except Exception:
                log.exception("a step of the engine failed")
                results = self._fail()
            self._hand_over(results)

    def _obey(self) -> None:
        cancelled = False
        while self._commands:
            answer, wanted = self._commands.popleft()
            if wanted:
                self._waiting.append(answer)
            elif answer in self._running:
                self._running[answer].handle.cancel()
                self._forget(answer)
                cancelled = True
            elif answer in self._waiting:
                self._waiting.remove(answer)
        if cancelled and not self._running:
            self._pipeline.step()  # gives their blocks back

    def _admit(self) -> None:
        """Starts answers in their order while the cache has room for all that they may need."""
        while self._waiting and len(self._running) < self.limits.running:
            answer = self._waiting[0]
            blocks = blocks_of(len(answer.prompt) + answer.sampling.max_new_tokens)
            if blocks > self._free_blocks:
                return
            self._waiting.popleft()
            answer.start()
            prompt = openvino.Tensor(np.array([answer.prompt], dtype=np.int64))
            handle = self._pipeline.add_request(next(self._ids), prompt, self._config(answer))
            self._running[answer] = _Running(handle, blocks)
            self._free_blocks -= blocks

    def _config(self, answer: Answer) -> GenerationConfig:
        sampling, config = answer.sampling, GenerationConfig()
        config.max_new_tokens = sampling.max_new_tokens
        config.stop_token_ids = set(self.end_tokens)
        config.repetition_penalty = sampling.repetition_penalty
        if sampling.temperature:
            config.do_sample = True
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            if sampling.top_k:
                config.top_k = sampling.top_k
            seed = sampling.seed
            config.rng_seed = random.getrandbits(63) if seed is None else seed
        return config

    def _read(self, answer: Answer) -> Step | None:
        handle = self._running[answer].handle
        tokens: list[int] = []
        reason: FinishReason | None = None
        while handle.can_read():
            for output in handle.read().values():
                tokens += output.generated_ids
                reason = _REASONS.get(output.finish_reason)
        if not tokens:
            return None
        count = len(tokens)
        if reason:
            self._forget(answer)
            if reason == "stop":
                tokens.pop()
        return Step(tokens, count, reason)

    def _forget(self, answer: Answer) -> None:
        self._free_blocks += self._running.pop(answer).blocks

    def _fail(self) -> list[tuple[Answer, Step | None]]:
        error = InternalError("the engine failed in a step of this answer; see the service's log")
        failed = list(self._running)
        for answer in failed:
            self._running[answer].handle.cancel()
            self._forget(answer)
        return [(answer, Step((), 0, error=error)) for answer in failed]

    def _hand_over(self, results: list[tuple[Answer, Step | None]]) -> None:
        assert self._loop is not None, "set by the first submit"
        self._turn.clear()
        self._loop.call_soon_threadsafe(self._deliver, results)
        self._turn.wait()

    def _deliver(self, results: list[tuple[Answer, Step | None]]) -> None:
        for answer, step in results:
            if step:
                answer.put(step)
        self._take_turn(LOOP_ROUNDS)

    def _take_turn(self, rounds: int) -> None:
        if rounds and self._loop:
            self._loop.call_soon(self._take_turn, rounds - 1)
        else:
            self._turn.set()


class _Running:
    """An answer inside the pipeline, and the blocks that are kept for it."""

    def __init__(self, handle: Any, blocks: int) -> None:
        self.handle = handle
        self.blocks = blocks


def blocks_of(tokens: int) -> int:
    """Blocks of the cache that so many tokens take."""
    return -(-tokens // BLOCK_TOKENS)
