"""Embeddings: sentence-transformers in process, infinity, and ours through Envoy, in one run.

`python -m tests.bench.bench_embeddings` prints a table and writes out/bench/embeddings.json,
.md and .png. All run interleaved, a stretch each in turn, since this machine may not be alone. A
tonic client calls ours; beside another server, a Python client does too, as it calls that one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from tests.bench.cores import effective_cores
from tests.bench.embeddings_ours import Ours
from tests.bench.embeddings_peers import Infinity, SentenceTransformers
from tests.bench.embeddings_types import Calls, Embedding
from tests.bench.rust_client import RustClient, add_option
from tools.models import REPOSITORY

mpl.use("Agg")
from matplotlib import pyplot as plt  # the backend comes first

OUT = REPOSITORY / "out" / "bench"
CALLERS = (1, 8, 32)
BULK = 512
DTYPES = ("float32", "bfloat16", "int8")
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


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All arms, interleaved: callers of one sentence, and one caller of all."""
    rust = RustClient.chosen(options.client)
    ours = Ours(options.dtypes, rust, python=options.infinity)
    peers: list[Embedding] = [SentenceTransformers()]
    if options.infinity:
        peers.append(Infinity())
    texts = sentences(BULK)
    parts: list[Any] = [ours, *peers]
    started: list[Any] = []
    try:
        for each in parts:
            started.append(each)
            await each.start()
        embeds: list[Embedding] = [*peers, *ours.arms]
        cosines = await check(embeds, texts[:128])
        arms: dict[tuple[str, str, int], Arm] = {}
        for _ in range(options.rounds):
            for embed in embeds:
                for callers in (*options.callers, BULK):
                    if embed is peers[0] and callers in options.callers[1:]:
                        continue  # a library has one caller at a time
                    arm = arms.setdefault((embed.name, embed.client, callers), Arm())
                    arm.add(*await stretch(embed, texts, callers, options.seconds))
    finally:
        for each in reversed(started):
            await each.stop()
    return {
        "cosines": cosines,
        "results": [
            {"name": name, "client": client, "callers": callers, **arm.summary()}
            for (name, client, callers), arm in arms.items()
        ],
    }


def table(report: dict[str, Any]) -> str:
    """The results as Markdown, rates beside those of `encode` of all sentences at once."""
    results = report["results"]
    base = next(
        each["rate"]
        for each in results
        if (each["name"], each["callers"]) == (SentenceTransformers.name, BULK)
    )
    before, after = report["effective_cores"]
    lines = [
        (
            f"{report['rounds']} rounds of {report['seconds']:g} s; "
            f"effective cores {before:.2f} before, {after:.2f} after."
        ),
        "",
        "| | client | callers | sentences/s | of encode | p50 ms | p99 ms | cosine |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for each in results:
        who = f"1 of {BULK}" if each["callers"] == BULK else str(each["callers"])
        lines.append(
            f"| {each['name']} | {each['client']} | {who} | "
            f"{each['rate']:.0f} | {each['rate'] / base:.2f} | "
            f"{each['p50_ms']:.1f} | {each['p99_ms']:.1f} | {report['cosines'][each['name']]:.5f} |"
        )
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="of one stretch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of a second each")
    parser.add_argument("--callers", type=int, nargs="+", default=list(CALLERS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        "--infinity", action="store_true", help="infinity-emb too; needs its packages"
    )
    add_option(parser)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    cores = effective_cores()
    report = asyncio.run(measure(options))
    report |= {
        "effective_cores": [cores, effective_cores()],
        "machine": platform.processor() or platform.machine(),
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "embeddings.json").write_text(json.dumps(report, indent=2))
    plot(report, options.out / "embeddings.png")
    (options.out / "embeddings.md").write_text(table(report) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
