"""The steps of a batch. A generation joins with its prompt and leaves at any step when it ends."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shared.errors import InternalError
from shared.process import exit_if_out_of_memory
from text_svc.worker.engines.base import (
    Generation,
    StepOutput,
)
from text_svc.worker.engines.torch_batch.forms import FormMask
from text_svc.worker.engines.torch_batch.kv_cache import (
    ALIGNMENT,
    aligned,
)
from text_svc.worker.engines.torch_batch.model import BatchModel
from text_svc.worker.engines.torch_batch.sampler import (
    TokenSampler,
    next_tokens,
)

log = logging.getLogger(__name__)

# Prompt tokens to read between two steps. A long prompt is read in pieces, so that the other
# generations do not wait for it and it can be cancelled. A GPU needs larger pieces to be busy.
PROMPT_TOKENS = 128
CUDA_PROMPT_TOKENS = 1024

Result = tuple[Generation, StepOutput]


def needed(generation: Generation) -> int:
    """The most tokens of cache that a generation can take."""
    return aligned(len(generation.prompt) + generation.sampling.max_new_tokens)


@dataclass(eq=False)
class _Row:
    """One generation in the batch.

    Attributes:
        length: tokens of it in the cache.
        last: its newest token, which is not in the cache yet.
        generated: tokens generated so far.
    """

    generation: Generation
    sampler: TokenSampler
    length: int = 0
    last: int = 0
    generated: int = 0

    @property
    def prompt_left(self) -> Sequence[int]:
        return self.generation.prompt[self.length :]


class BatchDecoder:
    """Runs generations in a batch, one step at a time. Use it from one thread only.

    The caller guarantees that the cache holds every row at the longest row's final length, see
    `needed`.

    Args:
        model: its cache is used by this decoder alone.
        end_tokens: ids that end a generation.
        rows: the usual number of generations; with more of them the cache is divided anew.
    """

    def __init__(self, model: BatchModel, end_tokens: Sequence[int], rows: int) -> None:
        self._model = model
        self._usual_stride = model.cache.tokens // rows // ALIGNMENT * ALIGNMENT
        self._end_tokens = frozenset(end_tokens)
        self._waiting: deque[Generation] = deque()
        # In the order of the cache's rows. Only the last one may still be reading its prompt.
        self._rows: list[_Row] = []
        self._piece = PROMPT_TOKENS if model.device.type == "cpu" else CUDA_PROMPT_TOKENS
        self._prompt_budget = self._piece

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._rows and not self._waiting

    def begin(self, generation: Generation) -> None:
        """Adds a generation. Prompts are read in the order of these calls."""
        self._waiting.append(generation)

    def cancel(self, generation: Generation) -> None:
        """Removes a generation; does nothing if it has already ended."""
        if generation in self._waiting:
            self._waiting.remove(generation)
        for row in self._rows:
            if row.generation is generation:
                self._leave(row)
                return

    def clear(self) -> list[Generation]:
        """Removes all generations, and returns them."""
        generations = [row.generation for row in self._rows] + list(self._waiting)
        self._rows.clear()
        self._waiting.clear()
        return generations

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """Reads a piece of a prompt, or generates one token for every row; returns the outputs."""
        reading = self._rows[-1] if self._rows and self._rows[-1].prompt_left else None
        others = len(self._rows) - (reading is not None)
        if (reading or self._waiting) and (self._prompt_budget > 0 or not others):
            return self._read_or_fail(reading or self._join())
        self._prompt_budget = self._piece
        rows = self._rows[:others]
        try:
            logits = self._model.step([row.last for row in rows], [row.length for row in rows])
        except Exception as raised:
            exit_if_out_of_memory(raised)
            log.exception("a step failed: its rows go on one by one", extra={"rows": len(rows)})
            return [result for row in rows for result in self._step_alone(row)]
        for row in rows:
            row.length += 1
        return self._chosen(rows, logits)

    def _step_alone(self, row: _Row) -> list[Result]:
        """Generates one token for one row; if that fails, only this row does."""
        try:
            logits = self._model.prompt(self._rows.index(row), [row.last], row.length)
        except Exception as raised:
            exit_if_out_of_memory(raised)
            log.exception("the model failed in a generation")
            self._leave(row)
            error = InternalError("the engine failed in a step of this generation")
            return [(row.generation, StepOutput((), 0, error=error))]
        row.length += 1
        return self._chosen([row], logits)

    def _read_or_fail(self, row: _Row) -> list[Result]:
        """As `_read`; if it fails, as with a token that the model lacks, only that prompt fails."""
        try:
            return self._read(row)
        except Exception as raised:
            exit_if_out_of_memory(raised)
            log.exception("the model failed to read a prompt")
            self._leave(row)
            error = InternalError("the engine failed at this prompt")
            return [(row.generation, StepOutput((), 0, error=error))]

    def _read(self, row: _Row) -> list[Result]:
        piece = row.prompt_left[: self._piece]
        logits = self._model.prompt(self._rows.index(row), piece, row.length)
        row.length += len(piece)
        self._prompt_budget -= len(piece)
        return [] if row.prompt_left else self._chosen([row], logits)

    def _join(self) -> _Row:
        generation = self._waiting[0]  # where `clear` finds it if this fails
        cache, rows = self._model.cache, len(self._rows)
        stride = max(needed(each) for each in (generation, *(row.generation for row in self._rows)))
        if stride > cache.stride or (rows + 1) * cache.stride > cache.tokens:
            longest = max((row.length for row in self._rows), default=0)
            cache.resize(max(stride, self._usual_stride), rows, longest)
        row = _Row(
            generation,
            TokenSampler.of(
                generation.sampling,
                generation.prompt,
                self._model.device,
                tuple(self._end_tokens),
                FormMask(generation.form) if generation.form else None,
            ),
        )
        self._rows.append(row)
        self._waiting.popleft()
        return row

    def _chosen(self, rows: Sequence[_Row], logits: torch.Tensor) -> list[Result]:
        broken = logits.isnan().any(-1)
        tokens = next_tokens(logits.nan_to_num_(), [row.sampler for row in rows])
        chosen: list[list[int]] = torch.stack((tokens, broken.long()), 1).tolist()
        results = []
        for row, (token, is_broken) in zip(rows, chosen, strict=True):
            output = self._broken(row) if is_broken else self._step(row, token)
            results.append((row.generation, output))
            if output.finish_reason or output.error:
                self._leave(row)
        return results

    def _step(self, row: _Row, token: int) -> StepOutput:
        if row.sampler.off_form:
            error = InternalError("no token of the model's vocabulary can follow in this form")
            return StepOutput((), 0, error=error)
        row.last = token
        row.generated += 1
        sampling = row.generation.sampling
        if token in self._end_tokens and not sampling.ignore_eos:
            return StepOutput((), 1, "stop")
        ended = row.generated == sampling.max_new_tokens
        scores = (row.sampler.score,) if row.sampler.score else ()
        return StepOutput((token,), 1, "length" if ended else None, scores=scores)

    def _broken(self, row: _Row) -> StepOutput:
        # A mask does not hide NaN, so it would spread to later generations in this row.
        self._model.cache.clear(self._rows.index(row))
        return StepOutput((), 0, error=InternalError("the model produced non-finite scores"))

    def _leave(self, row: _Row) -> None:
        """Removes a row and moves others into its place; one at its prompt stays the last."""
        gap = self._rows.index(row)
        last = len(self._rows) - 1
        if self._rows[last].prompt_left and gap < last:
            gap = self._move(last - 1, gap)
        self._move(last, gap)
        del self._rows[last]

    def _move(self, source: int, target: int) -> int:
        if source != target:
            row = self._rows[source]
            self._model.cache.move(source, target, row.length)
            self._rows[target] = row
        return source
