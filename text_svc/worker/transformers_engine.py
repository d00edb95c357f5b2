"""Generation with transformers' own `generate`, a thread an answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from shared.errors import InvalidArgumentError, QueueFullError
from text_svc.worker import chat
from text_svc.worker.detokenize import Detokenizer
from text_svc.worker.engine import Delta
from text_svc.worker.sampling import Sampling, SamplingDefaults

# Where a config names no context length.
DEFAULT_CONTEXT = 2048


class _Answer(BaseStreamer):
    """Takes tokens in the generating thread and hands deltas to the event loop."""

    def __init__(self, detokenizer: Detokenizer, loop: asyncio.AbstractEventLoop) -> None:
        self.deltas: asyncio.Queue[Delta | BaseException] = asyncio.Queue()
        self.cancelled = threading.Event()
        self.tokens = 0
        self._detokenizer = detokenizer
        self._loop = loop
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # `generate` sends the prompt first
            self._prompt_seen = True
            return
        self.tokens += 1
        self._send(Delta(self._detokenizer.add(int(value.item())), self.tokens))

    def end(self) -> None:
        """Part of the interface; `finish` knows why the answer ended."""

    def finish(self, stopped: bool) -> None:
        rest = self._detokenizer.rest()
        self._send(Delta(rest, self.tokens, "stop" if stopped else "length"))

    def fail(self, error: BaseException) -> None:
        self._send(error)

    def _send(self, item: Delta | BaseException) -> None:
        self._loop.call_soon_threadsafe(self.deltas.put_nowait, item)


class _Cancelled(StoppingCriteria):
    """Stops `generate` after the token during which the answer was cancelled."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)


class TransformersEngine:
    """A causal language model on torch.

    Args:
        folder: a directory of config, tokenizer and safetensors.
        dtype: of the weights.
        device: "cpu" or "cuda:N".
        max_length: tokens of prompt and answer at most; None is the model's own.
        max_running: answers generated at once.
        max_waiting: answers that wait; one more is refused.

    Raises:
        OSError, ValueError: the directory cannot be loaded.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype,
        device: str,
        max_length: int | None,
        max_running: int,
        max_waiting: int,
    ) -> None:
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        self.model = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **local)
            .eval()
            .to(device)
        )
        context = getattr(self.model.config, "max_position_embeddings", DEFAULT_CONTEXT)
        self.context = min(context, max_length or context)
        self.defaults = _defaults(folder)
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._active = 0
        self._threads = ThreadPoolExecutor(max_running, thread_name_prefix="generate")

    def encode(self, prompt: str) -> list[int]:
        ids: list[int] = self.tokenizer(prompt)["input_ids"]
        return ids

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        return chat.render(self.tokenizer, messages)

    async def generate(self, prompt: list[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """See `GenerationEngine.generate`."""
        room = self.context - len(prompt)
        if not prompt:
            raise InvalidArgumentError("the prompt is empty", field="prompt")
        if room < 1:
            raise InvalidArgumentError(
                f"the prompt has {len(prompt)} tokens; with the answer it must stay within "
                f"{self.context}",
                field="prompt",
            )
        if self._active >= self._max_running + self._max_waiting:
            raise QueueFullError(
                f"{self._max_running} answers run and {self._max_waiting} wait, which is the limit"
            )
        loop = asyncio.get_running_loop()
        answer = _Answer(Detokenizer(self.tokenizer.backend_tokenizer), loop)
        self._active += 1
        future = loop.run_in_executor(self._threads, self._run, prompt, sampling, room, answer)
        future.add_done_callback(self._finished)
        try:
            while True:
                item = await answer.deltas.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.finish_reason:
                    return
        finally:
            answer.cancelled.set()
            future.cancel()  # one that waits leaves the queue at once

    def _finished(self, future: asyncio.Future[None]) -> None:
        self._active -= 1
        if not future.cancelled():
            future.exception()  # was handed to the answer; retrieved here to keep asyncio quiet

    def _run(self, prompt: list[int], sampling: Sampling, room: int, answer: _Answer) -> None:
        """Runs in a thread: one `generate` call."""
        try:
            ids = torch.tensor([prompt], device=self.model.device)
            with torch.inference_mode():
                output = self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=self._generation_config(sampling, room),
                    streamer=answer,
                    stopping_criteria=StoppingCriteriaList([_Cancelled(answer.cancelled)]),
                )
            answer.finish(stopped=int(output[0, -1]) in self._end_tokens())
        except BaseException as error:
            answer.fail(error)
            raise

    def _generation_config(self, sampling: Sampling, room: int) -> GenerationConfig:
        own = self.model.generation_config
        chosen: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            chosen = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": own.top_k or 0,
            }
        end = self._end_tokens()
        return GenerationConfig(
            max_new_tokens=min(sampling.max_new_tokens, room),
            bos_token_id=own.bos_token_id,
            eos_token_id=end or None,
            pad_token_id=own.pad_token_id if own.pad_token_id is not None else next(iter(end), 0),
            **chosen,
        )

    def _end_tokens(self) -> list[int]:
        """Tokens that end an answer: the generation config's, else the tokenizer's."""
        end = self.model.generation_config.eos_token_id
        if end is None:
            end = self.tokenizer.eos_token_id
        if end is None:
            return []
        return list(end) if isinstance(end, list | tuple) else [int(end)]


def _defaults(folder: Path) -> SamplingDefaults:
    """Sampling defaults that the model's author wrote down; absent ones stay None."""
    try:
        config = GenerationConfig.from_pretrained(folder, local_files_only=True).to_diff_dict()
    except OSError:
        return SamplingDefaults()
    return SamplingDefaults(
        config.get("temperature"), config.get("top_p"), config.get("max_new_tokens")
    )
