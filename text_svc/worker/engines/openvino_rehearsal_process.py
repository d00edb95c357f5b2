"""The child process of `openvino_rehearsal`: compiles forms of answers as OpenVINO's steps would.

Its model has the vocabulary and the tokenizer of the real one, and takes any token to be as likely
as any other. All messages are JSON, one per line:

    in:  {"folder": …}, once
         {"json_schema": …}, {"regex": …} or {"grammar": …}
    out: {"seconds": of all processors together, "bytes": that the process has grown by, "last":
             whether the process ends now}, or {"error": why not}, after which it ends
"""

from __future__ import annotations

import itertools
import os
import re
import resource
import shutil
import sys
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

from shared.process import die_with_parent
from text_svc.formats.json_files import GENERATION_CONFIG
from text_svc.formats.manifest import MODEL
from text_svc.link.json_lines import BlockingJsonLines
from text_svc.worker.engines.openvino_process import structured_output

# What compiled forms may take in memory, and all that the process may reserve.
MEMORY_BYTES = 512 << 20
DATA_BYTES = 2 << 30
# Tokens that are tried: a form may be quick to compile and slow to follow.
TOKENS = 32
_WIDTH = 8
# The time and the place that its library writes before a message.
_SOURCE = re.compile(r"\[[0-9:]+\] \S+:[0-9]+: ")


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
        folder: of the converted model.
    """

    def __init__(self, folder: Path) -> None:
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
        """What a form takes of all processors together.

        Raises:
            RuntimeError: it cannot be compiled; the stage is of no use afterwards.
        """
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


def _reason(error: Exception) -> str:
    """What a library says, without the place in its sources."""
    last = _SOURCE.sub("", str(error).strip().splitlines()[-1])
    return f"cannot be compiled: {last.rpartition('Check failed: ')[2].strip()[:300]}"


def main() -> None:
    """Entry point; the one argument is the parent's process id."""
    die_with_parent(int(sys.argv[1]))
    os.nice(5)  # models that serve have priority
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = DATA_BYTES if hard == resource.RLIM_INFINITY else min(DATA_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    lines = BlockingJsonLines()
    setup = lines.receive()
    if setup is None:
        return
    try:
        stage = _Stage(Path(setup["folder"]))
    except Exception as error:  # noqa: BLE001  # the parent reports it
        lines.send({"error": str(error)})
        return
    begun = size = _peak_bytes()
    lines.send({"seconds": 0.0, "bytes": 0})
    # Compiled forms stay in memory, so the process ends in time for the next one to have enough.
    while size - begun < MEMORY_BYTES // 2 and (request := lines.receive()) is not None:
        [(kind, text)] = request.items()
        try:
            seconds = stage.seconds(kind, text)
        except Exception as error:  # noqa: BLE001  # the form's
            lines.send({"error": _reason(error)})
            return
        before, size = size, _peak_bytes()
        grown, last = size - before, size - begun >= MEMORY_BYTES // 2
        lines.send({"seconds": seconds, "bytes": grown, "last": last})


def _peak_bytes() -> int:
    """Most memory that the process has had; the sandbox hides /proc."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    main()
