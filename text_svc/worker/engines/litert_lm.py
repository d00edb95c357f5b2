"""Generation with LiteRT-LM, for .litertlm files on the CPU.

What the library (litert-lm-api 0.18.1) does, measured with SmolLM2-135M of 4-bit weights:

- A session reads and writes text, not tokens. All sessions of an engine work in one queue, and each
  takes the memory of a whole KV cache (90 MiB here). So one generation runs at a time.
- `cancel_process` ends an answer within a token (23 to 100 ms on a busy machine). While the prompt
  is read it is noticed only at the end, so long prompts are given in pieces of PIECE_TOKENS.
- It has no repetition penalty for sessions, and reads no images or sounds in them.
- It begins each prompt with the model's start token, see `LiteRtLmTokenizer`.
- It holds back what may become one of the model's stop tokens, and drops that at the limit of
  tokens: an answer of finish reason "length" may lack its last one.
- Without the cache_dir ":nocache" it writes its packed weights, as large as the model, beside the
  file. Packed in memory they count to the process.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import litert_lm

from shared.errors import InternalError, InvalidModelError
from shared.process import exit_if_out_of_memory
from text_svc.formats.litertlm import TEMPLATE, UNPACKED, read_litertlm
from text_svc.processes.specs import WorkerReport, WorkerSpec
from text_svc.worker.engines.base import (
    PROMPT_TEXT,
    FinishReason,
    Generation,
    Limits,
    StepOutput,
)
from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.generation_threads import GenerationThreads
from text_svc.worker.engines.litert import reason
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.sampling import Sampling
from text_svc.worker.tokenizing import tokenizing

log = logging.getLogger(__name__)

# Of a prompt that is read at once: some seconds on a small processor.
PIECE_TOKENS = 512
# Where the file says nothing, as the library.
DEFAULT_CONTEXT = 4096
# Off for the library: it takes the best of all tokens if there are fewer.
ALL_TOKENS = 1 << 20
_NO_CACHE = ":nocache"
# A place where texts can be parted: before a space between two words.
_PARTING = re.compile(r"(?<=\S)(?= \S)")


def load(
    spec: WorkerSpec, metrics: EngineMetrics
) -> tuple[LiteRtLmEngine, LiteRtLmTokenizer, WorkerReport]:
    """The engine and the tokenizer of a spec, and what the model costs. Blocks.

    The parts of the file that other models have as files are unpacked into UNPACKED in the scratch
    folder.

    Raises:
        InvalidModelError: LiteRT-LM cannot load the file, or it is no language model.
    """
    assert spec.options.file is not None, "the front has a file for each of these models"
    path = (spec.folder / spec.options.file).resolve()
    file = read_litertlm(path)
    unpacked = spec.scratch / UNPACKED
    file.unpack(unpacked)
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    try:
        with litert_lm.ModelInfo(str(path)) as info:
            if not info.is_llm_model:
                raise InvalidModelError(f"{path.name} is no language model")
            known = (spec.options.max_length, file.metadata().max_num_tokens)
            sizes = [size for size in (*known, info.max_context_tokens) if size and size > 0]
            context = min(sizes, default=DEFAULT_CONTEXT)
            dynamic = info.is_dynamic_context
        model = litert_lm.Engine(
            str(path),
            backend=litert_lm.Backend.CPU(thread_count=spec.threads),
            max_num_tokens=context if dynamic else None,
            cache_dir=_NO_CACHE,
            enable_benchmark=True,  # it counts the tokens
        )
    except RuntimeError as error:
        why = reason(error, path)
        raise InvalidModelError(f"LiteRT-LM cannot load {path.name}: {why}") from None
    tokenizer = LiteRtLmTokenizer(model, unpacked)
    limits = Limits(
        context,
        running=1,
        waiting=spec.max_waiting,
        repetition_penalty=False,
        weights=spec.caller_weights,
    )
    engine = LiteRtLmEngine(model, tokenizer, limits, metrics)
    return engine, tokenizer, WorkerReport(weights_bytes=path.stat().st_size)


class LiteRtLmTokenizer:
    """A `Tokenizer` on the one inside a .litertlm.

    LiteRT-LM puts the file's start token before each prompt; one that begins with it already, as
    chat templates write it, has it once here.

    Args:
        model: the loaded file.
        folder: with its chat template, if it has one.
    """

    # Its patterns come with the model, and a text is read in C++.
    may_be_slow = True

    def __init__(self, model: litert_lm.Engine, folder: Path) -> None:
        self._model = model
        self._start = model.bos_token_id
        self._start_text = "" if self._start is None else model.detokenize([self._start])
        template = folder / TEMPLATE
        self.chat_template = template.read_text() if template.exists() else None
        self.special_tokens = {"bos_token": self._start_text} if self._start_text else {}

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids, those of the start token first. `special` changes nothing."""
        del special
        start = [] if self._start is None or not self._start_text else [self._start]
        return start + self.plain(self.without_start(text))

    def without_start(self, text: str) -> str:
        """A text without the start token that LiteRT-LM writes before it."""
        return text.removeprefix(self._start_text)

    def plain(self, text: str) -> list[int]:
        """Token ids of a text alone."""
        if not text:
            return []
        with tokenizing():
            ids: list[int] = self._model.tokenize(text)
        return ids

    def has_token(self, text: str) -> bool:
        ids = self.plain(text)
        return len(ids) == 1 and bool(self._model.detokenize(ids) == text)

    def special_tokens_in(self, texts: Sequence[str]) -> dict[int, str]:
        """None: LiteRT-LM writes text, and nothing can be kept in it."""
        del texts
        return {}

    def token(self, token: int) -> tuple[str, bytes]:
        """Not used: LiteRT-LM gives no log-probabilities."""
        text: str = self._model.detokenize([token])
        return text, text.encode()

    def detokenizer(self, prompt: Sequence[int] = ()) -> _NoDetokenizer:
        """Not used: LiteRT-LM writes text."""
        del prompt
        return _NoDetokenizer()


class _NoDetokenizer:
    def add(self, token: int) -> str:
        raise AssertionError(f"token {token} of an engine that writes text")

    def rest(self) -> str:
        return ""


class _Run:
    """One generation in the engine's thread."""

    def __init__(self, generation: Generation, loop: asyncio.AbstractEventLoop) -> None:
        self.cancelled = threading.Event()
        self._generation = generation
        self._loop = loop
        self._lock = threading.Lock()  # the library must not cancel a session that is closed
        self._session: litert_lm.Session | None = None

    def open(self, session: litert_lm.Session) -> None:
        with self._lock:
            self._session = session
        if self.cancelled.is_set():
            self.cancel()

    def close(self) -> None:
        with self._lock:
            session, self._session = self._session, None
            if session:
                session.close()

    def cancel(self) -> None:
        """Ends the generation at its next token. May be called in any thread."""
        self.cancelled.set()
        with self._lock:
            if self._session:
                self._session.cancel_process()

    def send(self, output: StepOutput) -> None:
        if not self.cancelled.is_set():
            self._loop.call_soon_threadsafe(self._generation.put, output)


class LiteRtLmEngine:
    """An `Engine` on LiteRT-LM. The generation's inputs have the prompt as PROMPT_TEXT.

    Args:
        model: the loaded file.
        tokenizer: of the file.
        limits: see `Engine`.
        metrics: of the model.
    """

    cache_bytes = cache_limit_bytes = 0

    def __init__(
        self,
        model: litert_lm.Engine,
        tokenizer: LiteRtLmTokenizer,
        limits: Limits,
        metrics: EngineMetrics,
    ) -> None:
        self.limits = limits
        self._model = model
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._threads = GenerationThreads(limits, "litert-lm", metrics)

    async def compile(self, form: Form) -> None:
        raise NotImplementedError("it does not have this feature")

    def submit(self, generation: Generation) -> None:
        run = _Run(generation, asyncio.get_running_loop())
        self._threads.submit(generation, partial(self._run, generation, run), run.cancel)

    def cancel(self, generation: Generation) -> None:
        self._threads.cancel(generation)

    async def give_back(self) -> None:
        """Nothing to do: each generation has a session of its own, which ends with it."""

    async def close(self) -> None:
        await self._threads.close()
        self._model.close()

    # What follows runs in the thread.

    def _run(self, generation: Generation, run: _Run) -> None:
        generation.start()
        try:
            session = self._model.create_session(
                apply_prompt_template=False,
                sampler_config=sampler(generation.sampling),
                max_output_tokens=generation.sampling.max_new_tokens,
            )
            run.open(session)
            self._write(generation, run, session)
        except Exception as error:
            exit_if_out_of_memory(error)
            log.exception("a generation failed")
            failed = InternalError("LiteRT-LM failed in this generation")
            run.send(StepOutput((), 0, error=failed))
        finally:
            run.close()

    def _write(self, generation: Generation, run: _Run, session: litert_lm.Session) -> None:
        assert generation.inputs is not None, "the prompt's text is there"
        for piece in self._pieces(generation.inputs[PROMPT_TEXT], generation.prompt):
            if run.cancelled.is_set():
                return
            session.run_prefill([piece])
            self._threads.steps.done()
        if run.cancelled.is_set():
            return
        counted = 0
        for response in session.run_decode_async():
            self._threads.steps.done()
            if run.cancelled.is_set():  # to the end: the library still calls back
                session.cancel_process()
            counted += 1
            self._metrics.step(1)
            run.send(StepOutput((), 1, text="".join(response.texts)))
        total = session.get_benchmark_info().last_decode_token_count
        most = generation.sampling.max_new_tokens
        reason: FinishReason = "length" if total >= most else "stop"
        run.send(StepOutput((), total - counted, reason))

    def _pieces(self, text: str, prompt: Sequence[int]) -> Iterator[str]:
        """A prompt in pieces that have the same tokens; as it is, if it is short or has no such."""
        text = self._tokenizer.without_start(text)
        if len(prompt) <= PIECE_TOKENS:
            yield text
            return
        pieces = _parted(text, len(text) * PIECE_TOKENS // len(prompt))
        ids = [token for piece in pieces for token in self._tokenizer.plain(piece)]
        if ids == list(prompt[len(prompt) - len(ids) :]):
            yield from pieces
        else:
            yield text


def _parted(text: str, characters: int) -> list[str]:
    """A text in pieces of about so many characters, parted where words begin."""
    pieces, begin = [], 0
    for place in (match.start() for match in _PARTING.finditer(text)):
        if place - begin >= characters:
            pieces.append(text[begin:place])
            begin = place
    return [*pieces, text[begin:]]


def sampler(sampling: Sampling) -> litert_lm.SamplerConfig:
    """The library's parameters. It takes no seed above 31 bits."""
    if not sampling.temperature:
        return litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0)
    seed = random.getrandbits(31) if sampling.seed is None else sampling.seed
    return litert_lm.SamplerConfig(
        top_k=min(sampling.top_k or ALL_TOKENS, ALL_TOKENS),
        top_p=sampling.top_p,
        temperature=sampling.temperature,
        seed=(seed ^ seed >> 31 ^ seed >> 62) & (1 << 31) - 1,
    )
