"""Measures some ways to generate in one run: what the benchmarks of text have in common."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from tests.bench.machine import quiet_machine
from tests.bench.results import parser_of, publish
from tests.bench.rust_client import RustClient, add_option
from tests.bench.text_peers import Ours
from tests.bench.text_report import plot, table
from tests.bench.text_servers import ByHttp, HttpPeer
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

# Names of peers: the figure of the first is told by that of the second.
Pairs = Sequence[tuple[str, str]]
# Makes a peer; those of ours take the tonic client.
Maker = Callable[[RustClient | None], Peer]
Makers = Mapping[str, Maker]
# MiB that some processes and their children hold.
Memory = Callable[[Sequence[int]], float]
# Questions after a system prompt that was asked about before.
AGAIN = 4


async def run(
    wanted: Mapping[str, Peer],
    compared: Pairs,
    options: argparse.Namespace,
    memory: Memory = memory_mib,
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


def parser_for(doc: str | None, callers: Sequence[int], tokens: int) -> argparse.ArgumentParser:
    """A parser with the options of these benchmarks."""
    parser = parser_of(doc)
    parser.add_argument("--callers", nargs="+", type=int, default=callers)
    parser.add_argument("--tokens", type=int, default=tokens, help="new tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    add_option(parser)
    return parser


def main_for(
    name: str,
    options: argparse.Namespace,
    makers: Makers,
    compared: Pairs,
    memory: Memory = memory_mib,
) -> None:
    """Measures what the makers make, and publishes it under a name, with a plot."""
    rust = RustClient.chosen(options.client)
    with quiet_machine(busy=options.busy) as machine:
        wanted = {each: make(rust) for each, make in makers.items()}
        report = asyncio.run(run(wanted, compared, options, memory))
    publish(options.out, name, machine, report, table(report))
    plot(report, options.out / f"{name}.png")


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
    memory: Memory,
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
