"""Embeddings: libraries in process, infinity, and ours through Envoy, in one run.

`python -m tests.bench.bench_embeddings` prints a table and writes out/bench/embeddings.json,
.md and .png. All run interleaved, a stretch each in turn. A tonic client calls ours; beside another
server, a Python client does too, as it calls that one. A peer that cannot be started is left out,
and the table says why. `--short` measures ours and the libraries of the same bits alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from tests.bench.embeddings_ours import Ours
from tests.bench.embeddings_peers import Child, Conversion, Infinity, sentence_transformers
from tests.bench.embeddings_types import Calls, Embedding
from tests.bench.machine import quiet_machine
from tests.bench.results import parser_of, publish
from tests.bench.rust_client import RustClient, add_option
from tests.bench.text_types import memory_mib

mpl.use("Agg")
from matplotlib import pyplot as plt  # the backend comes first

CALLERS = (1, 8, 32)
BULK = 512
DTYPES = ("float32", "bfloat16", "int8")
# `encode` of all sentences in one call: what the table compares rates with.
ENCODE = "sentence-transformers, float32"
WORDS = """
the tide reached harbour wall while keeper slept counted ships in fog and read letters of music
science history weather prices apples people who ask about an answer that nobody knew
""".split()  # noqa: SIM905  # as a list it would fill the page


def sentences(count: int) -> list[str]:
    """Texts of 4 to some 100 words, 30 tokens on average; always the same."""
    chance = random.Random(0)
    return [
        " ".join(chance.choices(WORDS, k=int(chance.lognormvariate(3, 0.7)) + 4))
        for _ in range(count)
    ]


@dataclass
class Arm:
    """What one way to embed did with one number of callers.

    Attributes:
        rates: sentences a second of each stretch.
        latencies: of all calls, in seconds.
        cpu: of the client, seconds a sentence of each stretch.
    """

    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, calls: Calls, batch: int) -> None:
        """Takes in a stretch of calls of `batch` sentences."""
        count = len(calls.latencies) * batch
        self.rates.append(count / calls.seconds)
        self.latencies += calls.latencies
        self.cpu.append(calls.client_cpu_seconds / count)

    def summary(self) -> dict[str, float]:
        p50, p99 = np.percentile(self.latencies, (50, 99)) * 1000
        return {
            "rate": statistics.median(self.rates),
            "p50_ms": p50,
            "p99_ms": p99,
            "client_cpu_ms": statistics.median(self.cpu) * 1000,
        }


async def stretch(
    embed: Embedding, texts: Sequence[str], callers: int, seconds: float
) -> tuple[Calls, int]:
    """Callers of one sentence in a closed loop, or one call of all; and sentences of a call."""
    if callers == BULK:
        return await embed.calls(texts, callers=1, batch=BULK, seconds=0.0), BULK
    return await embed.calls(texts, callers=callers, batch=1, seconds=seconds), 1


async def check(embeds: Sequence[Embedding], texts: Sequence[str]) -> dict[str, float]:
    """The smallest cosine of each one's vectors to the first one's."""
    reference = await embeds[0].vectors(texts)
    reference /= np.linalg.norm(reference, axis=1, keepdims=True)
    smallest = {}
    for each in embeds:
        got = await each.vectors(texts)
        got /= np.linalg.norm(got, axis=1, keepdims=True)
        smallest[each.name] = float((got * reference).sum(1).min())
    return smallest


def peers_of(options: argparse.Namespace) -> list[Embedding]:
    """What ours is compared with; the first one's vectors are what all others must be near."""
    first: list[Embedding] = [sentence_transformers("float32")]
    same_bits = [Conversion(dtype) for dtype in options.dtypes]
    if options.short:
        return [*first, *same_bits]
    backends = [("bfloat16", "torch"), ("float32", "onnx"), ("int8", "onnx")]
    backends.append(("float32", "openvino"))
    return [*first, *same_bits, *(sentence_transformers(*each) for each in backends), Infinity()]


async def start(parts: Sequence[Any], running: list[Any]) -> dict[str, str]:
    """Adds those that start to `running`, and returns why the others do not; the first two, ours
    and `encode`, must."""
    left_out: dict[str, str] = {}
    for each in parts:
        try:
            await each.start()
        except Exception as error:
            with contextlib.suppress(Exception):  # it may not have got far enough
                await each.stop()
            if len(running) < 2:
                raise
            left_out[each.name] = f"{type(error).__name__}: {error}"
        else:
            running.append(each)
    return left_out


async def measure(options: argparse.Namespace, rust: RustClient | None) -> dict[str, Any]:
    """All arms, interleaved: callers of one sentence, and one caller of all."""
    ours = Ours(options.dtypes, rust, python=not options.short)
    texts = sentences(BULK)
    running: list[Any] = []
    try:
        left_out = await start([ours, *peers_of(options)], running)
        embeds: list[Embedding] = [*running[1:], *ours.arms]
        cosines = await check(embeds, texts[:128])
        arms = {
            (embed, callers): Arm()
            for embed in embeds
            for callers in (*options.callers, BULK)
            # a library has one caller at a time
            if not isinstance(embed, Child) or callers not in options.callers[1:]
        }
        for _ in range(options.rounds):
            for (embed, callers), arm in sorted(arms.items(), key=lambda each: each[0][1]):
                arm.add(*await stretch(embed, texts, callers, options.seconds))
        memory = {each.name: memory_mib(pids) for each in embeds if (pids := each.pids())}
        memory["ours, all together"] = memory_mib(ours.pids())
    finally:
        for each in reversed(running):
            await each.stop()
    return {
        "cosines": cosines,
        "left_out": left_out,
        "memory_mib": memory,
        "results": [
            {"name": embed.name, "client": embed.client, "callers": callers, **arm.summary()}
            for (embed, callers), arm in arms.items()
        ],
    }


def table(report: dict[str, Any]) -> str:
    """The results as Markdown, rates beside those of all sentences at once in process: by
    `encode`, and by the engine of ours at the same bits."""
    at_once = {each["name"]: each["rate"] for each in report["results"] if each["callers"] == BULK}
    lines = [
        f"Medians of {report['rounds']} rounds of {report['seconds']:g} s.",
        "",
        "| | client | callers | sentences/s | of encode | of OpenVINO | p50 ms | p99 ms | cosine |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in report["results"]:
        who = f"1 of {BULK}" if each["callers"] == BULK else str(each["callers"])
        engine = at_once.get(f"OpenVINO, {each['name'].rpartition(' ')[2]}")
        share = f"{each['rate'] / engine:.2f}" if engine else ""
        lines.append(
            f"| {each['name']} | {each['client']} | {who} | "
            f"{each['rate']:.0f} | {each['rate'] / at_once[ENCODE]:.2f} | {share} | "
            f"{each['p50_ms']:.1f} | {each['p99_ms']:.1f} | {report['cosines'][each['name']]:.5f} |"
        )
    lines += ["", "| memory, MiB | at the end |", "|---|---:|"]
    lines += [f"| {name} | {held:.0f} |" for name, held in report["memory_mib"].items()]
    for name, why in report["left_out"].items():
        lines += ["", f"Left out: {name}: {why}."]
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Rates by the number of callers."""
    names = list(dict.fromkeys((each["name"], each["client"]) for each in report["results"]))
    labels = [*map(str, CALLERS), f"1 of {BULK}"]
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for place, (name, client) in enumerate(names):
        own = (e for e in report["results"] if (e["name"], e["client"]) == (name, client))
        rates = {each["callers"]: each["rate"] for each in own}
        width = 0.8 / len(names)
        heights = [rates.get(callers, 0) for callers in (*CALLERS, BULK)]
        axes.bar(
            [x + place * width for x in range(len(labels))], heights, width, label=", ".join(name)
        )
    axes.set_xticks([x + 0.4 for x in range(len(labels))], labels)
    axes.set_xlabel("callers of one sentence; the last is one caller of many")
    axes.set_ylabel("sentences/s")
    axes.legend()
    figure.savefig(path, dpi=150)


def parse_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, help="of one stretch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--callers", type=int, nargs="+", default=list(CALLERS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    add_option(parser)
    options = parser.parse_args()
    options.seconds = options.seconds or (2.0 if options.short else 4.0)
    return options


def main() -> None:
    """Entry point."""
    options = parse_arguments()
    rust = RustClient.chosen(options.client)
    with quiet_machine(busy=options.busy) as machine:
        report = asyncio.run(measure(options, rust))
    report |= {"rounds": options.rounds, "seconds": options.seconds}
    publish(options.out, "embeddings", machine, report, table(report))
    plot(report, options.out / "embeddings.png")


if __name__ == "__main__":
    main()
