"""Embeddings: sentence-transformers in process, infinity, and ours through Envoy, in one run.

`python -m tests.bench.bench_embeddings` prints a table and writes out/bench/embeddings.json,
.md and .png. All run interleaved, a stretch each in turn, since this machine may not be alone.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import platform
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from tests.bench.cores import effective_cores
from tests.bench.embeddings_peers import Embedding, Infinity, Ours, SentenceTransformers
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
    """What one way to embed did with one number of callers."""

    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        p50, p99 = np.percentile(self.latencies, (50, 99)) * 1000
        return {"rate": statistics.median(self.rates), "p50_ms": p50, "p99_ms": p99}


async def stretch(
    arm: Arm, embed: Embedding, texts: Sequence[str], callers: int, seconds: float
) -> None:
    """Callers of one sentence at a time, each asking again as soon as it has its answer."""
    supply = itertools.cycle(texts)
    start = time.perf_counter()
    end, before = start + seconds, len(arm.latencies)

    async def call() -> None:
        while (begun := time.perf_counter()) < end:
            await embed.embed([next(supply)])
            arm.latencies.append(time.perf_counter() - begun)

    await asyncio.gather(*(call() for _ in range(callers)))
    arm.rates.append((len(arm.latencies) - before) / (time.perf_counter() - start))


async def bulk(arm: Arm, embed: Embedding, texts: Sequence[str]) -> None:
    """One caller of many sentences."""
    begun = time.perf_counter()
    await embed.embed(texts)
    arm.latencies.append(time.perf_counter() - begun)
    arm.rates.append(len(texts) / arm.latencies[-1])


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
    """All arms, interleaved."""
    ours = Ours(options.dtypes)
    peers: list[Embedding] = [SentenceTransformers()]
    if options.infinity:
        peers.append(Infinity())
    texts = sentences(BULK)
    started: list[Any] = []
    try:
        for each in (ours, *peers):
            started.append(each)
            await each.start()
        embeds = [*peers, *ours.arms]
        cosines = await check(embeds, texts[:128])
        arms: dict[tuple[str, int], Arm] = {}
        for _ in range(options.rounds):
            for embed in embeds:
                for callers in options.callers:
                    if embed is peers[0] and callers > 1:
                        continue  # a library has one caller at a time
                    arm = arms.setdefault((embed.name, callers), Arm())
                    await stretch(arm, embed, texts, callers, options.seconds)
                await bulk(arms.setdefault((embed.name, BULK), Arm()), embed, texts)
    finally:
        for each in reversed(started):
            await each.stop()
    return {
        "cosines": cosines,
        "results": [
            {"name": name, "callers": callers, **arm.summary()}
            for (name, callers), arm in arms.items()
        ],
    }


def table(report: dict[str, Any]) -> str:
    """The results as Markdown, rates beside those of `encode` of all sentences at once."""
    results = {(each["name"], each["callers"]): each for each in report["results"]}
    base = results[SentenceTransformers.name, BULK]["rate"]
    before, after = report["effective_cores"]
    lines = [
        (
            f"{report['rounds']} rounds of {report['seconds']:g} s; "
            f"effective cores {before:.2f} before, {after:.2f} after."
        ),
        "",
        "| | callers | sentences/s | of encode | p50 ms | p99 ms | cosine |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (name, callers), each in results.items():
        who = f"1 of {BULK}" if callers == BULK else str(callers)
        lines.append(
            f"| {name} | {who} | {each['rate']:.0f} | {each['rate'] / base:.2f} | "
            f"{each['p50_ms']:.1f} | {each['p99_ms']:.1f} | {report['cosines'][name]:.5f} |"
        )
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Rates by the number of callers."""
    names = list(dict.fromkeys(each["name"] for each in report["results"]))
    labels = [*map(str, CALLERS), f"1 of {BULK}"]
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for place, name in enumerate(names):
        rates = {e["callers"]: e["rate"] for e in report["results"] if e["name"] == name}
        width = 0.8 / len(names)
        heights = [rates.get(callers, 0) for callers in (*CALLERS, BULK)]
        axes.bar([x + place * width for x in range(len(labels))], heights, width, label=name)
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
