"""A process of `rehearsal`: compiles forms of answers as OpenVINO's steps would.

Its model has the vocabulary and the tokenizer of the real one, and takes any token to be as likely
as any other. It is told {"folder": …} first; see `rehearsal_process`.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as op
from openvino_genai import (
    ContinuousBatchingPipeline,
    GenerationConfig,
    SchedulerConfig,
    Tokenizer,
)

from text_svc.formats.json_files import GENERATION_CONFIG
from text_svc.formats.manifest import MODEL
from text_svc.worker.engines.openvino_process import structured_output
from text_svc.worker.engines.rehearsal_process import TOKENS, serve

_WIDTH = 8


def make_model(vocabulary: int) -> openvino.Model:
    """A decoder with one layer and no weights, in the shape that OpenVINO GenAI expects."""

    def parameter(name: str, shape: list[int], kind: Any) -> Any:
        made = op.parameter(shape, kind, name=name)
        made.output(0).set_names({name})
        return made

    ids = parameter("input_ids", [-1, -1], np.int64)
    mask = parameter("attention_mask", [-1, -1], np.int64)
    positions = parameter("position_ids", [-1, -1], np.int64)
    beams = parameter("beam_idx", [-1], np.int32)
    zero = op.constant(np.int64(0))
    batch = op.gather(op.shape_of(ids), op.constant(np.array([0])), zero)
    places = op.unsqueeze(op.convert(positions, np.float32), op.constant(np.int64(2)))
    hidden = op.gather(op.constant(np.zeros((vocabulary, _WIDTH), np.float32)), ids, zero)
    hidden = op.add(hidden, op.multiply(places, op.constant(np.zeros((1, 1, _WIDTH), np.float32))))

    def heads() -> Any:
        made = op.matmul(hidden, op.constant(np.eye(_WIDTH, dtype=np.float32)), False, True)
        made = op.reshape(made, op.constant(np.array([0, 0, 1, _WIDTH])), True)
        return op.transpose(made, op.constant(np.array([0, 2, 1, 3])))

    assigned = []

    def with_past(name: str, new: Any) -> Any:
        info = openvino.op.util.VariableInfo()
        info.data_shape = openvino.PartialShape([-1, 1, -1, _WIDTH])
        info.data_type = openvino.Type.f32
        info.variable_id = f"past_key_values.0.{name}present.0.{name}"
        variable = openvino.op.util.Variable(info)
        shape = op.concat([batch, op.constant(np.array([1, 0, _WIDTH]))], 0)
        past = op.read_value(op.broadcast(op.constant(np.float32(0)), shape), variable)
        whole = op.concat([op.gather(past, beams, zero), new], 2)
        assigned.append(op.assign(whole, variable))
        return whole

    query = heads()
    keys, values = with_past("key", heads()), with_past("value", heads())
    hide = op.subtract(op.constant(np.float32(1)), op.convert(mask, np.float32))
    hide = op.multiply(hide, op.constant(np.float32(-1e9)))
    hide = op.unsqueeze(hide, op.constant(np.array([1, 2])))
    seen = op.scaled_dot_product_attention(query, keys, values, hide)
    seen = op.transpose(seen, op.constant(np.array([0, 2, 1, 3])))
    seen = op.reshape(seen, op.constant(np.array([0, 0, _WIDTH])), True)
    head = op.constant(np.zeros((vocabulary, _WIDTH), np.float32))
    result = op.result(op.matmul(seen, head, False, True))
    result.output(0).set_names({"logits"})
    return openvino.Model([result], assigned, [ids, mask, positions, beams], "rehearsal")


class _Stage:
    """A pipeline on such a model.

    Args:
        setup: names the folder of the converted model, with its tokenizer for OpenVINO.
    """

    def __init__(self, setup: dict[str, Any]) -> None:
        folder = Path(setup["folder"])
        real = openvino.Core().read_model(folder / MODEL)
        vocabulary = real.output("logits").partial_shape[2].get_length()
        del real
        scheduler = SchedulerConfig()
        scheduler.num_kv_blocks = 16
        with tempfile.TemporaryDirectory() as made:
            openvino.save_model(make_model(vocabulary), Path(made) / MODEL)
            for name in ("config.json", GENERATION_CONFIG):
                shutil.copy(folder / name, made)
            self._pipeline = ContinuousBatchingPipeline(
                made, Tokenizer(str(folder)), scheduler, "CPU", INFERENCE_NUM_THREADS=1
            )
        self._numbers = itertools.count()
        self.seconds("regex", "a")  # it reads the vocabulary once

    def seconds(self, kind: str, text: str) -> float:
        """See `Stage`."""
        config = GenerationConfig()
        config.max_new_tokens = TOKENS
        config.do_sample = True
        config.structured_output_config = structured_output({kind: text})
        prompt = openvino.Tensor(np.array([[0]], dtype=np.int64))
        began = time.process_time()
        handle = self._pipeline.add_request(next(self._numbers), prompt, config)
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            if handle.can_read():
                handle.read()
        return time.process_time() - began


def main() -> None:
    """Entry point; the one argument is the parent's process id."""
    serve(_Stage)


if __name__ == "__main__":
    main()
