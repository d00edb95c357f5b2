"""The first batches of a process, in two threads at once.

What OpenVINO makes on the first use is made once a process, so each case is a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops

# Imports of numpy inside of OpenVINO take their time, as they may on a busy machine.
PROGRAM = """
import builtins, sys, time
from pathlib import Path
from queue import Queue
import numpy as np
from text_svc.worker.embeddings.openvino import OpenVinoEncoder

encoder = OpenVinoEncoder(Path(sys.argv[1]), precision="f32", threads=2)
imported = builtins.__import__

def slowly(name, *rest, **others):
    time.sleep(0.05 if name.startswith("numpy") else 0)
    return imported(name, *rest, **others)

builtins.__import__ = slowly
results = Queue()
for _ in range(2):
    encoder.start(np.ones((1, 3), np.int64), np.ones((1, 3), np.int64), results.put)
for _ in range(2):
    print(results.get()[0, 0])
"""


def tiny_model(path: Path) -> None:
    """Adds its two inputs and averages over the tokens: (batch, tokens) to (batch, 1)."""
    inputs = [ops.parameter([-1, -1], np.int64, name) for name in ("input_ids", "attention_mask")]
    mean = ops.reduce_mean(ops.convert(ops.add(*inputs), "f32"), ops.constant([1]), keep_dims=True)
    for each, name in zip(inputs, ("input_ids", "attention_mask"), strict=True):
        each.output(0).set_names({name})
    ov.save_model(ov.Model([mean], inputs), path)


def test_first_batches_at_once(tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    tiny_model(path)
    command = (sys.executable, "-c", PROGRAM, str(path))
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["2.0", "2.0"]
