"""Generation with transformers on torch.

Models that can run in batches get `torch_batch.engine`; the others run transformers' `generate`, in
one thread per generation.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
)
from transformers.generation.streamers import BaseStreamer

from shared.errors import OutOfMemoryError
from text_svc.processes.specs import (
    WorkerReport,
    WorkerSpec,
)
from text_svc.torch_models.causal_lm import cache_budget, load_causal_lm
from text_svc.torch_models.decoding_rules import decoding_rules, own_warpers
from text_svc.torch_models.own_state import reads_one_text_at_a_time
from text_svc.torch_models.pretrained import (
    choose_device,
    choose_dtype,
    context_length,
    end_tokens_of,
    is_token,
    measure,
)
from text_svc.torch_models.tokenizer import load_tokenizer
from text_svc.worker.answers.formats import MARKS
from text_svc.worker.cancel import cancel_processor
from text_svc.worker.engines.base import (
    Engine,
    FinishReason,
    Generation,
    Limits,
    StepOutput,
    extra_running,
)
from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.generation_threads import GenerationThreads
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.torch_batch.eligibility import layer_shapes, packed_model
from text_svc.worker.engines.torch_batch.engine import BatchEngine
from text_svc.worker.engines.torch_batch.forms import TorchForms
from text_svc.worker.engines.torch_batch.kv_cache import (
    ALIGNMENT,
    LayerShape,
    aligned,
)
from text_svc.worker.engines.torch_batch.model import BatchModel
from text_svc.worker.engines.torch_batch.sampler import (
    FEATURES,
    TokenSampler,
    sample,
    sample_vocabulary,
)
from text_svc.worker.steps import Steps
from text_svc.worker.tokenizers.fast import FastTokenizer

log = logging.getLogger(__name__)

# Calls of `generate` that run at once; further ones would only share the same processor cores.
MAX_GENERATE = 2


class _Sink(BaseStreamer):
    """Receives tokens in the thread of `generate` and hands them to the event loop."""

    def __init__(
        self,
        generation: Generation,
        end_tokens: Sequence[int],
        loop: asyncio.AbstractEventLoop,
        steps: Steps,
    ) -> None:
        self.cancelled = threading.Event()
        self._steps = steps
        self._generation = generation
        self._end_tokens = end_tokens
        self._loop = loop
        self._prompt_seen = False
        self._last: int | None = None

    def put(self, value: torch.Tensor) -> None:
        self._steps.done()
        if not self._prompt_seen:  # `generate` sends the prompt first
            self._prompt_seen = True
            return
        self._send_last(None)
        self._last = int(value.item())

    def end(self) -> None:
        """Sends the last token, which is an end token or reaches the limit."""
        self._send_last("stop" if self._last in self._end_tokens else "length")

    def fail(self, error: Exception) -> None:
        self._send(StepOutput((), 0, error=error))

    def _send_last(self, reason: FinishReason | None) -> None:
        if self._last is not None:
            tokens = () if reason == "stop" else (self._last,)
            self._send(StepOutput(tokens, 1, reason))

    def _send(self, output: StepOutput) -> None:
        if not self.cancelled.is_set():
            self._loop.call_soon_threadsafe(self._generation.put, output)


class _SeededSampler(LogitsProcessor):
    """Samples a token with the generation's own seed, and masks all others for `generate`.

    Args:
        sampler: of the generation.
        warpers: what the model does to the scores besides.
    """

    def __init__(self, sampler: TokenSampler, warpers: Sequence[LogitsProcessor]) -> None:
        self._sampler = sampler
        self._warpers = warpers

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._warpers:
            scaled = scores / self._sampler.sampling.temperature
            token = sample_vocabulary(scaled, self._sampler, self._warpers)
        else:
            token = sample(scores, [self._sampler])
        return torch.full_like(scores, -torch.inf).index_fill_(-1, token, 0)


def load(spec: WorkerSpec, metrics: EngineMetrics) -> tuple[Engine, FastTokenizer, WorkerReport]:
    """Loads the engine and the tokenizer of a spec, and measures the model. Blocks.

    Raises:
        ServiceError, OSError, ValueError: the model cannot be loaded.
    """
    device = choose_device(spec.options)
    dtype = choose_dtype(spec.options, device)
    load_model = partial(load_causal_lm, spec.folder, dtype, device)
    model = load_model()
    tokenizer = load_tokenizer(spec.folder)
    text_tokenizer = FastTokenizer.of(tokenizer)
    limits = generate_limits(spec, context_length(model, spec.options.max_length))
    end_tokens = end_tokens_of(model, tokenizer)
    rules = decoding_rules(model.generation_config)
    if rules:
        log.info("generations of this model do not share a batch", extra={"why": rules})
    elif shapes := layer_shapes(model):
        model, packed_bytes = packed_model(model, load_model)
        batch = _batch_model(model, shapes, spec, limits.context)
        vocabulary = model.config.get_text_config().vocab_size
        limits = replace(
            limits,
            context=min(limits.context, batch.cache.tokens),
            running=spec.max_running,
            waiting=spec.max_waiting,
            extra=extra_running(spec.max_running),
            # A form ends with one of these tokens.
            features=FEATURES if end_tokens else FEATURES - {"response_format"},
            vocabulary=vocabulary,
        )
        report = measure(model, packed_bytes, batch.cache.num_bytes)
        forms = TorchForms(text_tokenizer, vocabulary, end_tokens, MARKS, limits.weights)
        return BatchEngine(batch, limits, end_tokens, metrics, forms), text_tokenizer, report
    engine = TransformersEngine(model, limits, end_tokens, metrics)
    return engine, text_tokenizer, measure(model)


def generate_limits(spec: WorkerSpec, context: int, new_tokens: int | None = None) -> Limits:
    """The limits of a model with `generate`; see `Limits` for the arguments."""
    return Limits(
        context,
        min(MAX_GENERATE, spec.max_running),
        spec.max_waiting_calls,
        new_tokens,
        weights=spec.caller_weights,
    )


def _batch_model(
    model: Any, shapes: Sequence[LayerShape], spec: WorkerSpec, context: int
) -> BatchModel:
    """The model, with a cache of the size that the spec or the device allows.

    Raises:
        OutOfMemoryError: that is less than the smallest cache.
    """
    token_bytes = model.dtype.itemsize * sum(
        shape.heads * (shape.key_size + shape.value_size) for shape in shapes
    )
    cache_bytes = cache_budget(spec, model.device)
    tokens = min(cache_bytes // token_bytes, spec.max_running * aligned(context))
    tokens = tokens // ALIGNMENT * ALIGNMENT
    if not tokens:
        raise OutOfMemoryError(
            f"a KV cache of {cache_bytes} bytes has no room for {ALIGNMENT} tokens of "
            f"{token_bytes} bytes"
        )
    return BatchModel(model, shapes, tokens)


class TransformersEngine:
    """An `Engine` on transformers' `generate`.

    Args:
        model: ready for inference.
        limits: see `Engine`. Generations that run at once share the processor's threads; some
            models take one at a time.
        end_tokens: ids that end a generation.
        metrics: of the model.
    """

    cache_bytes = cache_limit_bytes = 0

    def __init__(
        self, model: Any, limits: Limits, end_tokens: Sequence[int], metrics: EngineMetrics
    ) -> None:
        if reads_one_text_at_a_time(model):
            limits = replace(limits, running=1)
        self.model = model
        self.limits = limits
        self.end_tokens = tuple(end_tokens)
        # They are among `SamplingDefaults`, and `generate` wants a tokenizer for them.
        model.generation_config.stop_strings = None
        self._warpers = own_warpers(model.generation_config, model.device)
        self._threads = GenerationThreads(limits, "generate", metrics)

    async def compile(self, form: Form) -> None:
        raise NotImplementedError("it does not have this feature")

    def submit(self, generation: Generation) -> None:
        loop = asyncio.get_running_loop()
        sink = _Sink(generation, self.end_tokens, loop, self._threads.steps)
        run = partial(self._run, generation, sink)
        self._threads.submit(generation, run, sink.cancelled.set)

    def cancel(self, generation: Generation) -> None:
        self._threads.cancel(generation)

    async def give_back(self) -> None:
        """Nothing to do: each generation has a cache of its own, which ends with it."""

    async def close(self) -> None:
        await self._threads.close()

    def _run(self, generation: Generation, sink: _Sink) -> None:
        """Runs in a thread: one call of `generate`."""
        generation.start()
        try:
            sampler = TokenSampler.of(generation.sampling, (), self.model.device)
            processors = [_SeededSampler(sampler, self._warpers)] if sampler.generator else []
            with torch.inference_mode():
                self.model.generate(
                    **self._inputs(generation),
                    generation_config=self._generation_config(generation),
                    streamer=sink,
                    logits_processor=cancel_processor(sink.cancelled, *processors),
                )
        except Exception as error:  # noqa: BLE001  # the caller's task raises it
            sink.fail(error)

    def _inputs(self, generation: Generation) -> Mapping[str, Any]:
        if generation.inputs is not None:
            return generation.inputs
        ids = torch.tensor([generation.prompt], device=self.model.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _generation_config(self, generation: Generation) -> GenerationConfig:
        sampling, own = generation.sampling, self.model.generation_config
        end = list(self.end_tokens)
        return GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            repetition_penalty=sampling.repetition_penalty,
            bos_token_id=own.bos_token_id,
            eos_token_id=end or None,
            pad_token_id=own.pad_token_id if is_token(own.pad_token_id) else next(iter(end), 0),
            do_sample=False,  # `_SeededSampler` samples
            num_beams=1,  # beam search, which a model's config may ask for, cannot stream
        )
