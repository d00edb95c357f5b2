"""A prompt's beginning that was read before is not read again."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino_genai import GenerationConfig

from text_svc.worker.engines.openvino import BLOCK_TOKENS
from text_svc.worker.engines.openvino_process import (
    STEP_TOKENS,
    make_pipeline,
)


def steps_to_first_token(pipeline: Any, number: int, prompt: list[int]) -> int:
    """Steps of the engine until a prompt is read."""
    config = GenerationConfig()
    config.max_new_tokens = 1
    handle = pipeline.add_request(number, openvino.Tensor(np.array([prompt])), config)
    steps = 0
    while not handle.can_read():
        pipeline.step()
        steps += 1
    handle.read()
    return steps


def test_a_shared_beginning_is_read_once(converted_llama: Path) -> None:
    pipeline = make_pipeline(str(converted_llama), 100, 4, "f32", 1)
    shared = [1 + token % 90 for token in range(4 * STEP_TOKENS)]
    own = [[3] * BLOCK_TOKENS, [5] * BLOCK_TOKENS]
    assert steps_to_first_token(pipeline, 1, shared + own[0]) == 5
    assert steps_to_first_token(pipeline, 2, shared + own[1]) == 1
    assert steps_to_first_token(pipeline, 3, shared[::-1]) == 4
