"""Generation: ours beside other servers, and with engines beside OpenVINO, in one run.

`python -m tests.bench.bench_servers` prints tables and writes out/bench/servers.json, .md and
.png, as `bench_text` does. Servers that speak OpenAI's protocol are asked by a client in Python,
and so is ours, over HTTP through Envoy. A peer that cannot be installed or started is left out, and
the tables say why. `--short` leaves transformers' `generate` out, and 16 callers.
"""

from __future__ import annotations

from tests.bench.gguf_files import eight_bits, four_bits
from tests.bench.text_peers import Ours, OursLiteRt, generate, litert_lm
from tests.bench.text_run import Makers, main_for, parser_for
from tests.bench.text_servers import LlamaCpp, TransformersServe

CALLERS = (1, 8, 16)
# In the order of the table.
MAKERS: Makers = {
    "ours": lambda rust: Ours("float32", rust=rust),
    "serve": lambda _: TransformersServe(),
    "ours-int8": lambda rust: Ours("int8", rust=rust),
    "llama.cpp-q8": lambda _: LlamaCpp("Q8_0", eight_bits),
    "llama.cpp-q4": lambda _: LlamaCpp("Q4_1", four_bits),
    "ours-litert": lambda rust: OursLiteRt(rust),
    "litert-lm": lambda _: litert_lm(),
    "ours-transformers": lambda rust: Ours("float32", "transformers", rust),
    "generate": lambda _: generate(),
}
SLOW = ("ours-transformers", "generate")
RATIOS = (
    ("ours", "serve"),
    ("ours-int8", "llama.cpp-q8"),
    ("ours-int8", "llama.cpp-q4"),
    ("ours-litert", "litert-lm"),
    ("ours-transformers", "generate"),
)


def main() -> None:
    """Entry point."""
    parser = parser_for(__doc__, CALLERS, tokens=48)
    parser.add_argument("--peers", nargs="+", choices=MAKERS)
    options = parser.parse_args()
    if options.short:
        options.callers = options.callers[:2]
    short = [name for name in MAKERS if name not in SLOW or not options.short]
    chosen = {name: MAKERS[name] for name in options.peers or short}
    main_for("servers", options, chosen, RATIOS)


if __name__ == "__main__":
    main()
