"""A library in a process of its own: `python -m tests.bench.text_child ENGINE FOLDER DTYPE DEVICE`.

Reads stretches as JSON lines (`{"texts": [prompt], "prompts": [[ids]], "tokens": n}`, the same
prompts as text and as ids), answers with arrival times.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Asked:
    """Prompts as text and as ids, and how many new tokens each gets."""

    texts: list[str]
    prompts: list[list[int]]
    tokens: int


Run = Callable[[Asked], list[list[float]]]


def openvino(folder: str, dtype: str, _: str) -> Run:
    """OpenVINO GenAI's continuous batching, as lean as it can be called."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    from text_svc.worker.engines.openvino import PRECISIONS
    from text_svc.worker.engines.openvino_process import STEP_TOKENS

    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 700
    scheduler.max_num_seqs = 32
    scheduler.max_num_batched_tokens = STEP_TOKENS
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = True
    pipeline = genai.ContinuousBatchingPipeline(
        folder,
        scheduler,
        "CPU",
        {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype], "INFERENCE_NUM_THREADS": 2},
    )

    def run(asked: Asked) -> list[list[float]]:
        config = genai.GenerationConfig()
        config.max_new_tokens = asked.tokens
        start = time.perf_counter()
        handles = [
            pipeline.add_request(index, ov.Tensor(np.array([prompt])), config)
            for index, prompt in enumerate(asked.prompts)
        ]
        arrivals: list[list[float]] = [[] for _ in handles]
        while pipeline.has_non_finished_requests():
            pipeline.step()
            now = time.perf_counter() - start
            for times, handle in zip(arrivals, handles, strict=True):
                while handle.can_read():
                    for output in handle.read().values():
                        times += [now] * len(output.generated_ids)
        return arrivals

    return run


def generate(folder: str, dtype: str, device: str) -> Run:
    """transformers' `generate`, a thread a caller."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.eval().to(device)

    class Clock(BaseStreamer):
        def __init__(self, start: float, times: list[float]) -> None:
            self.start, self.times, self.prompt = start, times, True

        def put(self, value: torch.Tensor) -> None:
            if not self.prompt:
                self.times.append(time.perf_counter() - self.start)
            self.prompt = False

        def end(self) -> None:
            pass

    def one(prompt: list[int], tokens: int, clock: Clock) -> None:
        ids = torch.tensor([prompt], device=device)
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=2,
                streamer=clock,
            )

    def run(asked: Asked) -> list[list[float]]:
        arrivals: list[list[float]] = [[] for _ in asked.prompts]
        start = time.perf_counter()
        threads = [
            threading.Thread(target=one, args=(prompt, asked.tokens, Clock(start, times)))
            for prompt, times in zip(asked.prompts, arrivals, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return arrivals

    return run


def litert_lm(file: str, _dtype: str, _device: str) -> Run:
    """LiteRT-LM, which has one queue for all sessions: one prompt after the other."""
    import litert_lm as library

    library.set_min_log_severity(library.LogSeverity.ERROR)
    engine = library.Engine(file, backend=library.Backend.CPU(thread_count=2), cache_dir=":nocache")

    def one(text: str, tokens: int, start: float) -> list[float]:
        with engine.create_session(
            apply_prompt_template=False, max_output_tokens=tokens
        ) as session:
            session.run_prefill([text])
            return [time.perf_counter() - start for _ in session.run_decode_async()]

    def run(asked: Asked) -> list[list[float]]:
        start = time.perf_counter()
        return [one(text, asked.tokens, start) for text in asked.texts]

    return run


def main() -> None:
    """Serves stretches until stdin ends."""
    engine, *arguments = sys.argv[1:]
    engines = {"openvino": openvino, "generate": generate, "litert_lm": litert_lm}
    run: Run = engines[engine](*arguments)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(Asked(**json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
