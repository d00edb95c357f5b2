"""Generation on a CUDA device: ours through Envoy, transformers and vLLM, in one run.

`python -m tests.bench.bench_cuda` prints tables and writes out/bench/cuda.json and .md, as
`bench_text` does; memory is the device's. vLLM is installed into an environment of its own.
`--device cpu` runs the same on the CPU, without vLLM, to check the benchmark where there is no CUDA
device.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping

from tests.bench.bench_text import run
from tests.bench.machine import quiet_machine
from tests.bench.results import parser_of, publish
from tests.bench.rust_client import RustClient, add_option
from tests.bench.text_peers import Ours, generate
from tests.bench.text_report import table
from tests.bench.text_servers import TransformersServe, Vllm
from tests.bench.text_types import Peer, memory_mib
from tests.cuda.device import device_mib, missing

CALLERS = (1, 8, 32, 64)
DTYPE = "bfloat16"
RATIOS = (("ours", "generate"), ("ours", "serve"), ("ours", "vllm"))


def peers_on(device: str, rust: RustClient | None) -> Mapping[str, Peer]:
    """What is compared on a device; all but vLLM run on the CPU too."""
    peers: dict[str, Peer] = {
        "ours": Ours(
            DTYPE,
            "transformers",
            rust,
            device=device,
            max_sequences=str(max(CALLERS)),
        ),
        "generate": generate(DTYPE, device),
        "serve": TransformersServe(DTYPE, device),
    }
    return peers | ({"vllm": Vllm()} if device == "cuda" else {})


def main() -> None:
    """Entry point."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--callers", nargs="+", type=int, default=CALLERS)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    add_option(parser)
    options = parser.parse_args()
    if options.device == "cuda" and (why := missing()):
        sys.exit(f"nothing is measured: {why}")
    rust = RustClient.chosen(options.client)
    with quiet_machine(busy=options.busy) as machine:
        memory = device_mib if options.device == "cuda" else memory_mib
        report = asyncio.run(run(peers_on(options.device, rust), RATIOS, options, memory))
    publish(options.out, "cuda", machine, report, table(report))


if __name__ == "__main__":
    main()
