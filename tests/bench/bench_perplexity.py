"""What fewer bits cost in quality: the perplexity of one text, for every dtype and for peers.

`python -m tests.bench.bench_perplexity` prints a table and writes out/bench/perplexity.json and
.md. It reads the conversions that the benchmark of generation has made (`make bench-text`). int4 is
no dtype of text_svc: OpenVINO's compression of the float weights says what it would cost. The
weights of llama.cpp's files are computed with in float32, so its own rounding of activations is
left out. It does not matter how busy the machine is.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import openvino

from tests.bench.gguf_files import eight_bits, four_bits
from tests.bench.machine import Machine
from tests.bench.results import parser_of, publish
from tests.bench.text_peers import MODEL_FOLDER, converted_folder
from text_svc.worker.engines.openvino import PRECISIONS
from text_svc.worker.tokenizers.fast import FastTokenizer
from tools.models import smollm2

DTYPES = ("float32", "bfloat16", "int8")
# More than this over float32 is not offered.
LARGEST_LOSS = 0.01
# English prose of the same words on every machine: Python's language reference.
TEXT = "\n".join(text for _, text in sorted(topics.items()))
WINDOW = 512
MAX_TOKENS = 8192

Ids = npt.NDArray[np.int64]
# The negative log-likelihood of all tokens but the first, each given those before it.
Score = Callable[[Ids], float]


def of_logits(logits: npt.NDArray[np.floating[Any]], ids: Ids) -> float:
    """The score of tokens, from the logits of all places."""
    logits = logits[:-1].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    chosen = logits[np.arange(len(ids) - 1), ids[1:]]
    return float((np.log(np.exp(logits).sum(-1)) - chosen).sum())


def by_openvino(model: openvino.Model | str, precision: str) -> Score:
    """A decoder that OpenVINO runs."""
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    request = compiled.create_infer_request()

    def score(ids: Ids) -> float:
        request.reset_state()
        inputs = {
            "input_ids": ids[None],
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        return of_logits(request.infer(inputs)["logits"][0], ids)

    return score


def ours(dtype: str) -> Score:
    """A conversion of text_svc, with the precision that its dtype is served in."""
    return by_openvino(str(converted_folder(dtype) / "openvino_model.xml"), PRECISIONS[dtype])


def int4(mode: str) -> Score:
    """The float conversion with 4 bits a weight, in groups of 32."""
    import nncf

    path = converted_folder("float32") / "openvino_model.xml"
    model = openvino.Core().read_model(path)
    smaller = nncf.compress_weights(
        model, mode=getattr(nncf.CompressWeightsMode, mode), group_size=32, all_layers=True
    )
    return by_openvino(smaller, "f32")


def llama_cpp(path: Path) -> Score:
    """The weights of a GGUF file, computed with by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    weights = {name: torch.from_numpy(each) for name, each in smollm2.weights(reader, fields)}
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
    model.load_state_dict(weights, strict=False)  # the head is the embedding's

    def score(ids: Ids) -> float:
        with torch.inference_mode():
            return of_logits(model(torch.from_numpy(ids)[None]).logits[0].numpy(), ids)

    return score


# In the order of the table.
SCORES: dict[str, Callable[[], Score]] = {
    **{dtype: (lambda dtype=dtype: ours(dtype)) for dtype in DTYPES},  # type: ignore[misc]
    "OpenVINO int4, asymmetric": lambda: int4("INT4_ASYM"),
    "OpenVINO int4, symmetric": lambda: int4("INT4_SYM"),
    "llama.cpp, Q8_0": lambda: llama_cpp(eight_bits()),
    "llama.cpp, Q4_1": lambda: llama_cpp(four_bits()),
}


def windows(ids: Ids) -> Iterator[Ids]:
    """Of WINDOW tokens; the last may be shorter."""
    for start in range(0, len(ids) - 1, WINDOW):
        yield ids[start : start + WINDOW]


def perplexity(score: Score, ids: Ids) -> float:
    """Of all windows together."""
    count = sum(len(each) - 1 for each in windows(ids))
    return math.exp(sum(score(each) for each in windows(ids)) / count)


def table(report: dict[str, Any]) -> str:
    """Markdown, the loss to float32 beside each perplexity."""
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
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=SCORES, help="besides float32")
    options = parser.parse_args()
    ids = np.array(FastTokenizer(MODEL_FOLDER).encode(TEXT, special=True)[:MAX_TOKENS])
    names = [name for name in SCORES if not options.only or name in ("float32", *options.only)]
    found = {name: perplexity(SCORES[name](), ids) for name in names}
    report = {
        "tokens": len(ids),
        "window": WINDOW,
        "python": platform.python_version(),
        "perplexity": found,
    }
    publish(options.out, "perplexity", Machine(), report, table(report))


if __name__ == "__main__":
    main()
