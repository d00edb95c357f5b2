"""Generation on a CUDA device: ours through Envoy, transformers and vLLM, in one run.

`python -m tests.bench.bench_cuda` prints tables and writes out/bench/cuda.json and .md, as
`bench_text` does; memory is the device's. vLLM is installed into an environment of its own.
`--device cpu` runs the same on the CPU, without vLLM, to check the benchmark where there is no CUDA
device.
"""

from __future__ import annotations

import sys

from tests.bench.text_peers import Ours, generate
from tests.bench.text_run import Makers, main_for, parser_for
from tests.bench.text_servers import TransformersServe, Vllm
from tests.bench.text_types import memory_mib
from tests.cuda.device import device_mib, missing

CALLERS = (1, 8, 32, 64)
DTYPE = "bfloat16"
RATIOS = (("ours", "generate"), ("ours", "serve"), ("ours", "vllm"))


def makers(device: str) -> Makers:
    """What is compared on a device; all but vLLM run on the CPU too."""
    load = {"device": device, "max_sequences": str(max(CALLERS))}
    made: Makers = {
        "ours": lambda rust: Ours(DTYPE, "transformers", rust, **load),
        "generate": lambda _: generate(DTYPE, device),
        "serve": lambda _: TransformersServe(DTYPE, device),
    }
    return {**made, "vllm": lambda _: Vllm()} if device == "cuda" else made


def main() -> None:
    """Entry point."""
    parser = parser_for(__doc__, CALLERS, tokens=128)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and (why := missing()):
        sys.exit(f"nothing is measured: {why}")
    memory = device_mib if options.device == "cuda" else memory_mib
    main_for("cuda", options, makers(options.device), RATIOS, memory)


if __name__ == "__main__":
    main()
