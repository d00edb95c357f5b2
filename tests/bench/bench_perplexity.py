"""What a precision costs in quality: perplexity of one text for every dtype that is offered.

`python -m tests.bench.bench_perplexity` reads the conversions that the benchmark of generation has
made (`make bench-text`), and writes out/bench/perplexity.json and .md.
"""

from __future__ import annotations

import json
import platform
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino

from tests.bench.text_peers import MODEL_FOLDER, converted_folder
from tests.support.stack import ROOT
from text_svc.worker.engines.openvino import PRECISIONS
from text_svc.worker.tokenizers.fast import FastTokenizer

DTYPES = ("float32", "bfloat16", "int8")
# More than this over float32 is not offered.
LARGEST_LOSS = 0.01
# English prose of the same words on every machine: Python's language reference.
TEXT = "\n".join(text for _, text in sorted(topics.items()))
WINDOW = 512
MAX_TOKENS = 8192


def negative_log_likelihood(
    request: openvino.InferRequest, ids: npt.NDArray[np.int64]
) -> tuple[float, int]:
    """Of all tokens but the first, each given those before it, and how many there are."""
    request.reset_state()
    inputs = {
        "input_ids": ids[None],
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids))[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    logits = request.infer(inputs)["logits"][0, :-1].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    chosen = logits[np.arange(len(ids) - 1), ids[1:]]
    return float((np.log(np.exp(logits).sum(-1)) - chosen).sum()), len(ids) - 1


def perplexity(dtype: str, ids: npt.NDArray[np.int64]) -> float:
    """Of windows of WINDOW tokens, with the precision that the dtype is served in."""
    model = openvino.Core().compile_model(
        str(converted_folder(dtype) / "openvino_model.xml"),
        "CPU",
        {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype]},
    )
    request = model.create_infer_request()
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids) - 1, WINDOW)]
    sums = [negative_log_likelihood(request, each) for each in windows if len(each) > 1]
    return float(np.exp(sum(each for each, _ in sums) / sum(count for _, count in sums)))


def table(report: dict[str, Any]) -> str:
    """Markdown, each dtype's loss beside its perplexity."""
    found = report["perplexity"]
    lines = [
        (
            f"{report['tokens']} tokens of Python {report['python']}'s language reference, "
            f"{report['window']} at a time."
        ),
        "",
        "| dtype | perplexity | loss |",
        "|---|---:|---:|",
    ]
    for dtype, value in found.items():
        loss = value / found["float32"] - 1
        verdict = "" if loss <= LARGEST_LOSS else ", over the limit"
        lines.append(f"| {dtype} | {value:.3f} | {loss:+.2%}{verdict} |")
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    ids = np.array(FastTokenizer(MODEL_FOLDER).encode(TEXT, special=True)[:MAX_TOKENS])
    found = {dtype: perplexity(dtype, ids) for dtype in DTYPES}
    report = {
        "tokens": len(ids),
        "window": WINDOW,
        "python": platform.python_version(),
        "perplexity": found,
    }
    out = ROOT / "out" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    (out / "perplexity.json").write_text(json.dumps(report, indent=2) + "\n")
    (out / "perplexity.md").write_text(table(report) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
