"""Generation: ours through Envoy, the libraries in process, and other servers, in one run.

`python -m tests.bench.bench_text` prints a table and writes out/bench/text.json, .md and .png. Same
weights, same machine, same questions; a stretch is some callers with one question each, and the
peers take turns, since this machine may not be alone. A tonic client asks ours; for the ratios to
servers that Python asks, Python asks ours as well, in turns of its own. A peer that cannot be
started is left out, and the reason is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from tests.bench.cores import effective_cores
from tests.bench.rust_client import RustClient, add_option
from tests.bench.text_peers import ByPython, Child, Ours, OursLiteRt
from tests.bench.text_report import plot, table
from tests.bench.text_servers import LlamaCpp, TransformersServe
from tests.bench.text_types import Peer, Stretch, label, questions, ratio, summary
from tests.support.stack import ROOT

OUT = ROOT / "out" / "bench"
CALLERS = (1, 4, 8, 16)

# In the order of the table; "openvino" needs the conversion that "ours" of its dtype makes.
PEERS: dict[str, Callable[[RustClient | None], Peer]] = {
    "ours": lambda rust: Ours("float32", rust=rust),
    "openvino": lambda _: Child("openvino", "float32"),
    "ours-int8": lambda rust: Ours("int8", rust=rust),
    "openvino-int8": lambda _: Child("openvino", "int8"),
    "ours-bfloat16": lambda rust: Ours("bfloat16", rust=rust),
    "openvino-bfloat16": lambda _: Child("openvino", "bfloat16"),
    "ours-litert": lambda rust: OursLiteRt(rust),
    "ours-transformers": lambda rust: Ours("float32", "transformers", rust),
    "generate": lambda _: Child("generate", "float32"),
    "serve": lambda _: TransformersServe(),
    "llama.cpp": lambda _: LlamaCpp(),
}
# What is compared with what; the figure of the first by that of the second.
RATIOS = (
    ("ours", "openvino"),
    ("ours-int8", "openvino-int8"),
    ("ours-bfloat16", "openvino-bfloat16"),
    ("ours-transformers", "generate"),
    ("ours", "serve"),
    ("ours", "llama.cpp"),
    ("ours-int8", "llama.cpp"),
    ("ours-litert", "llama.cpp"),
    ("ours-litert", "ours-int8"),
)
SERVERS = ("serve", "llama.cpp")


def ratios(peers: Collection[str]) -> Iterator[tuple[str, str]]:
    """The pairs to compare, like with like: beside a server, ours as Python asks it."""
    for ours, theirs in RATIOS:
        if theirs in SERVERS and by_python(ours) in peers:
            ours = by_python(ours)
        if ours in peers and theirs in peers:
            yield ours, theirs


def by_python(name: str) -> str:
    """The name of the same services asked by Python."""
    return f"{name}-python"


async def started(names: list[str], rust: RustClient | None) -> dict[str, Peer]:
    """The peers that start, each after a first answer."""
    peers: dict[str, Peer] = {}
    for name in names:
        peer = PEERS[name](rust)
        try:
            print(f"starting {peer.name}", flush=True)
            await peer.start()
            await peer.stretch(questions(2, 0), 8)
        except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
            print(f"left out: {peer.name}: {type(error).__name__}: {error}", flush=True)
            await _stopped(peer)
        else:
            peers[name] = peer
    for ours, theirs in RATIOS:
        one = peers.get(ours)
        if rust and theirs in SERVERS and theirs in peers and isinstance(one, Ours):
            peers.setdefault(by_python(ours), ByPython(one))
    return peers


async def _stopped(peer: Peer) -> None:
    try:
        await peer.stop()
    except Exception as error:  # noqa: BLE001  # it may not have got far enough
        print(f"{peer.name} was not stopped: {error}")


async def measure(peers: dict[str, Peer], options: argparse.Namespace) -> dict[str, Any]:
    """Figures by peer and number of callers, ratios of peers, and gains from more callers."""
    stretches: dict[str, dict[str, list[Stretch]]] = {name: {} for name in peers}
    number = 0
    for round_ in range(options.rounds):
        for callers in options.callers:
            for name in peers if round_ % 2 else reversed(peers):
                number += 1
                asked = questions(callers, number)
                stretch = await peers[name].stretch(asked, options.tokens)
                stretches[name].setdefault(str(callers), []).append(stretch)
    return {
        "clients": {label(peer): peer.client for peer in peers.values()},
        "peers": {
            label(peers[name]): {callers: summary(each) for callers, each in by_callers.items()}
            for name, by_callers in stretches.items()
        },
        "ratios": {
            f"{label(peers[ours])} by {label(peers[theirs])}": {
                callers: ratio(each, stretches[theirs][callers])
                for callers, each in stretches[ours].items()
            }
            for ours, theirs in ratios(peers)
        },
        "gains": {
            label(peers[name]): {
                callers: ratio(each, next(iter(by_callers.values())))
                for callers, each in by_callers.items()
            }
            for name, by_callers in stretches.items()
        },
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--callers", nargs="+", type=int, default=CALLERS)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    add_option(parser)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    return parser.parse_args()


async def run(options: argparse.Namespace) -> dict[str, Any]:
    rust = RustClient.chosen(options.client)
    before = round(effective_cores(), 2)
    peers = await started(options.peers, rust)
    try:
        figures = await measure(peers, options)
    finally:
        for peer in peers.values():
            await _stopped(peer)
    return {
        "machine": platform.processor() or platform.machine(),
        "effective_cores": before,
        "effective_cores_after": round(effective_cores(), 2),
        "tokens": options.tokens,
        "rounds": options.rounds,
        **figures,
    }


def main() -> None:
    """Entry point."""
    options = parse_arguments()
    report = asyncio.run(run(options))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "text.json").write_text(json.dumps(report, indent=2) + "\n")
    plot(report, options.out / "text.png")
    (options.out / "text.md").write_text(table(report) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
