"""Generation with OpenVINO GenAI's continuous batching on the CPU."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shared.errors import InternalError, InvalidModelError, OutOfMemoryError
from shared.turns import Turns
from text_svc.formats.manifest import TOKENIZER, Manifest
from text_svc.processes.specs import (
    WorkerReport,
    WorkerSpec,
)
from text_svc.worker.engines.base import (
    Generation,
    Limits,
    StepOutput,
    TokenScore,
    extra_running,
)
from text_svc.worker.engines.cache_blocks import CacheBlocks
from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.openvino_stepper import OpenVinoStepper, Step
from text_svc.worker.engines.rehearsal import Rehearsal
from text_svc.worker.engines.sampling import Sampling
from text_svc.worker.steps import Steps
from text_svc.worker.tokenizers.fast import FastTokenizer

log = logging.getLogger(__name__)

_REHEARSAL = "text_svc.worker.engines.openvino_rehearsal_process"
# Attributes of GenerationConfig with the names that `Sampling` has.
_SAME = ("presence_penalty", "frequency_penalty", "ignore_eos")
# Tokens of a block of the KV cache; OpenVINO's value for CPUs.
BLOCK_TOKENS = 32
# The precision of the computation by the option dtype.
PRECISIONS = {"auto": "f32", "float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
# Of a number in the KV cache: OpenVINO keeps float16 there for both. A processor for which it keeps
# less has a cache of the same tokens in less memory, see `OpenVinoEngine.cache_limit_bytes`.
NUMBER_BYTES = 2
# What its sampler has besides; it gives the log-probability of the chosen token alone.
FEATURES = frozenset(
    {"min_p", "presence_penalty", "frequency_penalty", "min_tokens", "ignore_eos", "logprobs"}
)
# Compiled forms stay in the pipeline. When they have taken this much, it is made anew.
MAX_FORM_BYTES = 128 << 20
# Of a form that is too small to be measured.
MIN_FORM_BYTES = 1 << 12
# Tokens of prompts that the pipeline has not read, after which only a caller that has nothing
# running begins: it reads them in their order, and what comes anew should not wait for many. Two
# steps of `openvino_process`: so the next one is always full.
MAX_UNREAD_TOKENS = 512
# A caller with this many generations leaves an eighth of the cache to others.
MANY_RUNNING = 8
# A cache that holds less than this is not given back: making it anew costs more than that is worth.
MIN_GIVEN_BACK_BYTES = 64 << 20
# A model that took longer to load keeps its cache, since a caller might have to wait as long.
MAX_RENEWAL_SECONDS = 20.0


def load(
    spec: WorkerSpec, metrics: EngineMetrics
) -> tuple[OpenVinoEngine, FastTokenizer, WorkerReport]:
    """The engine and the tokenizer of a spec, and what the model costs. Blocks.

    Raises:
        ServiceError: the model cannot be loaded.
    """
    folder = spec.converted
    manifest = Manifest.read(folder) if folder else None
    if folder is None or manifest is None:
        raise InvalidModelError(f"model {spec.model_id} is not converted")
    precision = PRECISIONS[spec.options.dtype]
    own = min(manifest.context, spec.options.max_length or manifest.context)
    block_bytes = BLOCK_TOKENS * manifest.cache_width * NUMBER_BYTES
    blocks = min(spec.cache_bytes // block_bytes, spec.max_running * blocks_of(own))
    if not blocks:
        raise OutOfMemoryError(
            f"a KV cache of {spec.cache_bytes} bytes has no room for a block of {block_bytes} bytes"
        )
    with ThreadPoolExecutor(1) as thread:  # while the model is loaded in its process
        tokenizer = thread.submit(FastTokenizer, folder)
        engine = OpenVinoEngine(
            folder,
            limits=Limits(
                context=min(own, blocks * BLOCK_TOKENS),
                running=spec.max_running,
                extra=extra_running(spec.max_running),
                waiting=spec.max_waiting,
                weights=spec.caller_weights,
                features=FEATURES | ({"response_format"} if _knows_forms(folder) else set()),
            ),
            end_tokens=manifest.end_tokens,
            cache_blocks=blocks,
            block_bytes=block_bytes,
            precision=precision,
            threads=spec.threads,
            metrics=metrics,
        )
    report = WorkerReport(weights_bytes=manifest.weight_bytes)
    return engine, tokenizer.result(), report


def _knows_forms(folder: Path) -> bool:
    """Whether a converted model can follow a form: OpenVINO needs its vocabulary for that."""
    return (folder / TOKENIZER).exists()


def blocks_of(tokens: int) -> int:
    """Blocks of the cache that this many tokens take."""
    return -(-tokens // BLOCK_TOKENS)


class OpenVinoEngine:
    """An `Engine` on a converted model, whose steps run in `OpenVinoStepper`.

    A generation starts when it is its caller's turn and the cache has room for all that it may
    need, so none ever has to be interrupted. Everything here runs on the event loop.

    Args:
        folder: made by `text_svc.convert`.
        limits: see `Engine`; the cache holds `limits.context` tokens.
        end_tokens: ids that end a generation.
        cache_blocks: blocks of BLOCK_TOKENS in the KV cache.
        block_bytes: bytes of each, until the engine's first step tells.
        precision: of the computation, "f32" or "bf16".
        threads: of the computation.
        metrics: of the model.
        on_death: called if the stepper ends by itself; no generation ends after that.

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
        block_bytes: int = 0,
        precision: str,
        threads: int,
        metrics: EngineMetrics,
        on_death: Callable[[], None] = lambda: os._exit(1),
    ) -> None:
        self.limits = limits
        self._end_tokens = list(end_tokens)
        self._free_blocks = cache_blocks
        self._block_bytes = block_bytes
        self._written = CacheBlocks(cache_blocks, BLOCK_TOKENS)
        self._generated: dict[Generation, list[int]] = {}
        self._giving_back = False
        self._numbers = itertools.count(1)
        self._waiting: Turns[Generation] = Turns(limits.weights)
        self._unread: dict[Generation, int] = {}  # tokens, until the first one of the answer
        self._unread_tokens = 0
        self._running: dict[Generation, int] = {}
        self._by_number: dict[int, Generation] = {}
        self._metrics = metrics
        self._steps = Steps()
        self._rehearsal = Rehearsal(_REHEARSAL, {"folder": str(folder)}, limits.weights)
        # Hashes of the forms that the pipeline has met, and what these take.
        self._forms: set[int] = set()
        self._form_bytes = 0
        self._renewal: asyncio.Task[None] | None = None
        self._cancelling = False  # until the process tells of the next step
        began = time.monotonic()
        self._stepper = OpenVinoStepper(
            self._on_step,
            self._on_refused,
            on_death,
            folder=str(folder),
            cache_blocks=cache_blocks,
            running=limits.running + limits.extra,
            precision=precision,
            threads=threads,
        )
        self._load_seconds = time.monotonic() - began

    @property
    def cache_bytes(self) -> int:
        """Those of blocks that were written since the cache is there: pages of others are not."""
        running = sum(
            blocks_of(len(each.prompt) + len(new)) - len(each.prompt) // BLOCK_TOKENS
            for each, new in self._generated.items()
        )
        return min(self._written.written + running, self._written.blocks) * self._block_bytes

    @property
    def cache_limit_bytes(self) -> int:
        """Those of all blocks."""
        return self._written.blocks * self._block_bytes

    async def give_back(self) -> None:
        """Makes the cache anew, if it holds much and that is quick, and lets go of mapped weights.

        OpenVINO GenAI cannot empty a cache, so its pipeline is made anew, in the same process.
        """
        if self._running or self._giving_back:
            return
        await self._give_back(
            self.cache_bytes >= MIN_GIVEN_BACK_BYTES and self._load_seconds <= MAX_RENEWAL_SECONDS
        )

    async def _give_back(self, renew: bool) -> None:
        self._giving_back = True
        if renew:  # if it is not made anew after all, it is not tried again for the same forms
            self._forms.clear()
            self._form_bytes = 0
        try:
            if await self._stepper.give_back(renew=renew):
                self._written.clear()
        finally:
            self._giving_back = False
            self._admit()

    async def compile(self, form: Form) -> None:
        """See `Engine`."""
        compiled = form.compiled()
        size = await self._rehearsal.check(compiled)
        if (number := hash(compiled)) not in self._forms:
            self._forms.add(number)
            self._form_bytes += max(size, MIN_FORM_BYTES)

    def submit(self, generation: Generation) -> None:
        self._waiting.add(generation.caller, generation, generation.priority)
        self._admit()

    def cancel(self, generation: Generation) -> None:
        if generation in self._running:
            self._stepper.cancel(self._forget(generation))
            self._cancelling = True
            self._admit()
        elif self._waiting.remove(generation.caller, generation):
            self._admit()

    async def close(self) -> None:
        await self._rehearsal.close()
        await self._stepper.close()

    def _admit(self) -> None:
        if self._form_bytes > MAX_FORM_BYTES and not self._giving_back:
            if not self._running:
                self._renewal = asyncio.ensure_future(self._give_back(renew=True))
                self._giving_back = True
            self._count()
            return
        while not self._giving_back:
            generation = self._waiting.first()
            if generation is None or not self._may_begin(generation):
                break
            self._waiting.start()
            self._begin(generation)
        self._count()

    def _count(self) -> None:
        self._metrics.generations(len(self._running), len(self._waiting), self._waiting.callers)
        # A step that hangs is to be noticed even if its callers have all gone.
        self._steps.expect(len(self._running) + len(self._waiting) + self._cancelling)

    def _may_begin(self, generation: Generation) -> bool:
        """Whether there is room for the generation that is next."""
        own = self._waiting.running(generation.caller)
        blocks, running = self._free_blocks, self.limits.running
        if not own:
            running += self.limits.extra
        elif self._unread_tokens >= MAX_UNREAD_TOKENS:
            return False
        elif own >= MANY_RUNNING:
            blocks -= self._written.blocks // 8
        return len(self._running) < running and _blocks(generation) <= blocks

    def _begin(self, generation: Generation) -> None:
        generation.start()
        number = next(self._numbers)
        self._running[generation], self._by_number[number] = number, generation
        self._free_blocks -= _blocks(generation)
        self._generated[generation] = []
        unread = self._written.write(generation.prompt, ended=False)
        self._unread[generation] = unread
        self._unread_tokens += unread
        self._stepper.begin(number, generation.prompt, self._config(generation.sampling))

    def _forget(self, generation: Generation) -> int:
        number = self._running.pop(generation)
        del self._by_number[number]
        self._free_blocks += _blocks(generation)
        self._written.write(generation.prompt + self._generated.pop(generation), ended=True)
        self._waiting.ended(generation.caller, generation.cost)
        self._read(generation)
        return number

    def _read(self, generation: Generation) -> None:
        """Notes that a prompt is no longer to be read."""
        self._unread_tokens -= self._unread.pop(generation, 0)

    def _config(self, sampling: Sampling) -> dict[str, Any]:
        """The attributes of OpenVINO's GenerationConfig."""
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
            if sampling.min_p:
                config["min_p"] = sampling.min_p
        for name in sampling.wanted:
            if name in _SAME:
                config[name] = getattr(sampling, name)
            elif name == "min_tokens":
                config["min_new_tokens"] = sampling.min_tokens
            elif name == "logprobs":
                config["logprobs"] = 1
            elif name == "response_format":
                assert sampling.response_format is not None, "it is wanted"
                form = sampling.response_format.compiled()
                config["form"] = {form.kind: form.text}
        return config

    # A number that is not in `_by_number` belongs to a generation that was cancelled meanwhile.

    def _on_step(self, step: Step, cache_bytes: int | None) -> None:
        if cache_bytes:
            self._block_bytes = cache_bytes // self._written.blocks
        self._steps.done()
        self._cancelling = False
        if step:  # else it has read a piece of a prompt
            self._metrics.step(len(step))
        for number, tokens, reason, logprobs in step:
            if generation := self._by_number.get(number):
                self._generated[generation] += tokens
                self._read(generation)
                if reason:
                    self._forget(generation)
                new = tokens[:-1] if reason == "stop" else tokens
                scores = (
                    [TokenScore(*each) for each in zip(new, logprobs, strict=False)]
                    if logprobs
                    else ()
                )
                generation.put(StepOutput(new, len(tokens), reason, scores=scores))
        self._admit()

    def _on_refused(self, number: int, error: str) -> None:
        self._cancelling = False
        if generation := self._by_number.get(number):
            log.error("OpenVINO refused a generation", extra={"error": error})
            self._forget(generation)
            refused = InternalError("the engine refused this request")
            generation.put(StepOutput((), 0, error=refused))
        self._admit()


def _blocks(generation: Generation) -> int:
    return blocks_of(len(generation.prompt) + generation.sampling.max_new_tokens)
