"""Many fake replicas of text_svc in a process of their own, for bench_scale.

`python -m tests.bench.scale_workers REPLICAS MODELS` prints their addresses as a JSON list; all of
them hold all models. Then it answers lines on its standard input with a JSON line each: `count`
with the models that all hold together and the replicas that are admitted; `replace N` ends the
first N, starts as many on other addresses, empty, and answers with all addresses. It ends with its
input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import Any

from ml.internal import worker_pb2
from tests.support.model_workers import RAM, ModelWorker


def full(models: int) -> ModelWorker:
    """A replica with all models, which takes calls."""
    worker = ModelWorker()
    for number in range(models):
        model = worker_pb2.ModelInfo(
            model_id=f"org/model-{number}",
            pipeline_type="text-generation",
            state=worker_pb2.MODEL_STATE_READY,
            ram_bytes=RAM,
            loaded_at=1_700_000_000,
        )
        worker.models[model.model_id] = model
    worker.admitted = True
    return worker


async def answer(line: str, workers: list[ModelWorker], stack: contextlib.AsyncExitStack) -> Any:
    """What a line of the input asks for."""
    command, _, number = line.partition(" ")
    if command == "replace":
        gone = workers[: int(number)]
        await asyncio.gather(*(worker.stop() for worker in gone))
        del workers[: len(gone)]
        workers += [await stack.enter_async_context(ModelWorker().running()) for _ in gone]
        return [worker.address for worker in workers]
    return {
        "models": sum(len(worker.models) for worker in workers),
        "admitted": sum(worker.admitted for worker in workers),
    }


async def main(replicas: int, models: int) -> None:
    """Serves until the input ends."""
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(full(models).running()) for _ in range(replicas)]
        print(json.dumps([worker.address for worker in workers]), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await answer(line.strip(), workers, stack)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
