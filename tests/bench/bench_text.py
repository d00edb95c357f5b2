"""Generation: ours through Envoy beside the engine of ours in process, in one run.

`python -m tests.bench.bench_text` prints tables and writes out/bench/text.json, .md and .png. Same
weights, same machine, same questions; a stretch is some callers with one question each, and the
peers take turns. A tonic client asks ours over gRPC.
"""

from __future__ import annotations

from tests.bench.text_peers import Ours, openvino_genai
from tests.bench.text_run import Maker, Makers, main_for, parser_for

CALLERS = (1, 8, 16)
DTYPES = ("float32", "int8", "bfloat16")


def makers(dtypes: list[str]) -> Makers:
    """Ours of each dtype, and then the library with the conversion that ours has made."""
    made: dict[str, Maker] = {}
    for dtype in dtypes:
        made[f"ours-{dtype}"] = lambda rust, dtype=dtype: Ours(dtype, rust=rust)
        made[f"openvino-{dtype}"] = lambda _, dtype=dtype: openvino_genai(dtype)
    return made


def main() -> None:
    """Entry point."""
    parser = parser_for(__doc__, CALLERS, tokens=48)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    options = parser.parse_args()
    compared = [(f"ours-{dtype}", f"openvino-{dtype}") for dtype in options.dtypes]
    main_for("text", options, makers(options.dtypes), compared)


if __name__ == "__main__":
    main()
