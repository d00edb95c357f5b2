"""Several answers to one request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from shared.errors import InvalidArgumentError, OutOfRangeError
from text_svc.worker.engines.sampling import MAX_SEED, Sampling
from text_svc.worker.generation.generator import Delta, Prompt, TextGenerator, Usage

MAX_ANSWERS = 16


def check_answers(number: int) -> None:
    """Refuses a number of answers that is out of range; 0 means one.

    Raises:
        OutOfRangeError: it is.
    """
    if not 0 <= number <= MAX_ANSWERS:
        raise OutOfRangeError(f"n is {number}; it must be from 0 to {MAX_ANSWERS}", field="n")


async def several(
    generator: TextGenerator, prompt: Prompt, sampling: Sampling, number: int
) -> AsyncGenerator[tuple[int, Delta], None]:
    """Answers that are generated at the same time, each as a call of its own would be.

    Yields the deltas with the indices of their answers. Of those with a finish reason only the very
    last has usage: the tokens of all answers, and the times of the first one.

    Args:
        number: of answers, above 1. The seed of a request is that of the first one; the next ones
            count up from it.

    Raises:
        InvalidArgumentError: the answers would all be the same, since they are greedy.
        Others: as `TextGenerator.generate`.
    """
    if not sampling.temperature:
        raise InvalidArgumentError(
            f"n is {number}, but the answers are greedy, so they would all be the same", field="n"
        )
    queue: asyncio.Queue[tuple[int, Delta | Exception]] = asyncio.Queue()
    usages: list[Usage] = []

    async def run(index: int) -> None:
        seed = sampling.seed if sampling.seed is None else (sampling.seed + index) & MAX_SEED
        own = replace(sampling, seed=seed)
        answer = prompt.answer() if prompt.answer else None
        try:
            generation = generator.generate(prompt.ids, own, prompt.inputs, answer)
            async with aclosing(generation) as deltas:
                async for delta in deltas:
                    queue.put_nowait((index, delta))
        except Exception as error:  # noqa: BLE001  # raised below
            queue.put_nowait((index, error))

    tasks = [asyncio.create_task(run(index)) for index in range(number)]
    try:
        while len(usages) < number:
            index, delta = await queue.get()
            if isinstance(delta, Exception):
                raise delta
            if delta.usage:
                usages.append(delta.usage)
                together = _together(usages) if len(usages) == number else None
                delta = replace(delta, usage=together)
            yield index, delta
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _together(usages: list[Usage]) -> Usage:
    return Usage(
        usages[0].prompt_tokens,
        sum(each.generated_tokens for each in usages),
        min(each.queue_seconds for each in usages),
        min(each.first_token_seconds for each in usages),
        sum(each.reasoning_tokens for each in usages),
    )
