"""Generation: ours through Envoy, the libraries in process, and other servers, in one run.

`python -m tests.bench.bench_text` prints tables and writes out/bench/text.json, .md and .png. Same
weights, same machine, same questions; a stretch is some callers with one question each, and the
peers take turns. A tonic client asks ours over gRPC; beside servers that speak OpenAI's protocol,
the client that asks them asks ours too, over HTTP through Envoy, in turns of its own. A peer that
cannot be started is left out, and the tables say why. `--short` measures ours and the engine in
process alone.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from tests.bench.gguf_files import eight_bits, four_bits
from tests.bench.machine import quiet_machine
from tests.bench.results import parser_of, publish
from tests.bench.rust_client import RustClient, add_option
from tests.bench.text_peers import Ours, OursLiteRt, generate, litert_lm, openvino_genai
from tests.bench.text_report import plot, table
from tests.bench.text_servers import ByHttp, HttpPeer, LlamaCpp, TransformersServe
from tests.bench.text_types import (
    Peer,
    Repeated,
    Stretch,
    label,
    memory_mib,
    questions,
    ratio,
    summary,
    system_prompt,
)

CALLERS = (1, 8, 16)
# Questions after a system prompt that was asked about before.
AGAIN = 4

# In the order of the table; "openvino" needs the conversion that "ours" of its dtype makes.
PEERS: dict[str, Callable[[RustClient | None], Peer]] = {
    "ours": lambda rust: Ours("float32", rust=rust),
    "openvino": lambda _: openvino_genai("float32"),
    "ours-int8": lambda rust: Ours("int8", rust=rust),
    "openvino-int8": lambda _: openvino_genai("int8"),
    "ours-bfloat16": lambda rust: Ours("bfloat16", rust=rust),
    "openvino-bfloat16": lambda _: openvino_genai("bfloat16"),
    "ours-litert": lambda rust: OursLiteRt(rust),
    "litert-lm": lambda _: litert_lm(),
    "ours-transformers": lambda rust: Ours("float32", "transformers", rust),
    "generate": lambda _: generate(),
    "serve": lambda _: TransformersServe(),
    "llama.cpp-q8": lambda _: LlamaCpp("Q8_0", eight_bits),
    "llama.cpp-q4": lambda _: LlamaCpp("Q4_1", four_bits),
}
SHORT = tuple(PEERS)[:6]
# What is compared with what; the figure of the first by that of the second.
Pairs = Sequence[tuple[str, str]]
RATIOS = (
    ("ours", "openvino"),
    ("ours-int8", "openvino-int8"),
    ("ours-bfloat16", "openvino-bfloat16"),
    ("ours-litert", "litert-lm"),
    ("ours-transformers", "generate"),
    ("ours", "serve"),
    ("ours-int8", "llama.cpp-q8"),
    ("ours-int8", "llama.cpp-q4"),
)


def ratios(peers: Collection[str], compared: Pairs) -> Iterator[tuple[str, str]]:
    """The pairs to compare, like with like: beside a server, ours as HTTP clients ask it."""
    for ours, theirs in compared:
        if ours in peers and theirs in peers:
            yield (by_http(ours) if by_http(ours) in peers and is_server(theirs) else ours), theirs


def is_server(name: str) -> bool:
    """Whether a peer is asked over HTTP."""
    return name.startswith(("serve", "llama.cpp", "vllm"))


def by_http(name: str) -> str:
    """The name of the same services asked over HTTP."""
    return f"{name}-http"


async def started(
    wanted: Mapping[str, Peer], compared: Pairs
) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that start, each after a first answer, and why the others do not."""
    peers: dict[str, Peer] = {}
    left_out: dict[str, str] = {}
    for name, peer in wanted.items():
        try:
            print(f"starting {peer.name}", flush=True)
            await peer.start()
            await peer.stretch(questions(2, 0), 8)
        except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
            left_out[peer.name] = f"{type(error).__name__}: {error}"
            print(f"left out: {peer.name}: {left_out[peer.name]}", flush=True)
            await _stopped(peer)
        else:
            peers[name] = peer
    for ours, theirs in compared:
        one, other = peers.get(ours), peers.get(theirs)
        if isinstance(one, Ours) and isinstance(other, HttpPeer):
            peers.setdefault(by_http(ours), ByHttp(one))
    return peers, left_out


async def _stopped(peer: Peer) -> None:
    try:
        await peer.stop()
    except Exception as error:  # noqa: BLE001  # it may not have got far enough
        print(f"{peer.name} was not stopped: {error}")


async def measure(
    peers: dict[str, Peer],
    compared: Pairs,
    options: argparse.Namespace,
    memory: Callable[[Sequence[int]], float],
) -> dict[str, Any]:
    """Figures by peer and number of callers, ratios of peers, and gains from more callers."""
    stretches: dict[str, dict[str, list[Stretch]]] = {name: {} for name in peers}
    repeated: dict[str, list[Repeated]] = {name: [] for name in peers}
    number = 0
    for round_ in range(options.rounds):
        turns = list(peers) if round_ % 2 else list(reversed(peers))
        for callers in options.callers:
            for name in turns:
                number += 1
                asked = questions(callers, number)
                stretch = await peers[name].stretch(asked, options.tokens)
                stretches[name].setdefault(str(callers), []).append(stretch)
        for name in turns:
            number += 1
            repeated[name].append(await repeat(peers[name], number))
    return {
        "peers": {
            label(peers[name]): {callers: summary(each) for callers, each in by_callers.items()}
            for name, by_callers in stretches.items()
        },
        "ratios": {
            f"{label(peers[ours])} by {label(peers[theirs])}": {
                callers: ratio(each, stretches[theirs][callers])
                for callers, each in stretches[ours].items()
            }
            for ours, theirs in ratios(peers, compared)
        },
        "gains": {
            label(peers[name]): {
                callers: ratio(each, next(iter(by_callers.values())))
                for callers, each in by_callers.items()
            }
            for name, by_callers in stretches.items()
        },
        "repeated": {label(peers[name]): Repeated.medians(each) for name, each in repeated.items()},
        "memory_mib": {
            label(peer): memory(pids) for peer in peers.values() if (pids := peer.pids())
        },
    }


async def repeat(peer: Peer, number: int) -> Repeated:
    """Questions of one caller after a system prompt: the first ever, and then others."""
    system = system_prompt(number)
    cold, *warm = [
        (await peer.stretch([question], 2, system)).first[0]
        for question in questions(1 + AGAIN, number)
    ]
    return Repeated(cold, warm)


def parse_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--peers", nargs="+", choices=PEERS)
    parser.add_argument("--callers", nargs="+", type=int, default=CALLERS)
    parser.add_argument("--tokens", type=int, default=48, help="new tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    add_option(parser)
    options = parser.parse_args()
    options.peers = options.peers or (SHORT if options.short else PEERS)
    return options


async def run(
    wanted: Mapping[str, Peer],
    compared: Pairs,
    options: argparse.Namespace,
    memory: Callable[[Sequence[int]], float] = memory_mib,
) -> dict[str, Any]:
    """The report: figures of all peers that start.

    Args:
        wanted: the peers by name, in the order of the tables.
        compared: names of peers, the figure of the first by that of the second.
        options: callers, tokens and rounds.
        memory: MiB of some processes and their children.
    """
    peers, left_out = await started(wanted, compared)
    try:
        figures = await measure(peers, compared, options, memory)
    finally:
        for peer in peers.values():
            await _stopped(peer)
    return {"tokens": options.tokens, "rounds": options.rounds, "left_out": left_out, **figures}


def main() -> None:
    """Entry point."""
    options = parse_arguments()
    rust = RustClient.chosen(options.client)
    with quiet_machine(busy=options.busy) as machine:
        wanted = {name: PEERS[name](rust) for name in options.peers}
        report = asyncio.run(run(wanted, RATIOS, options))
    publish(options.out, "text", machine, report, table(report))
    plot(report, options.out / "text.png")


if __name__ == "__main__":
    main()
