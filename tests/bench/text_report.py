"""The figures of the text benchmark as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt


def table(report: dict[str, Any]) -> str:
    """Markdown: tokens a second for each number of callers, latencies, ratios of peers, gains,
    what a repeated prompt saves, and memory."""
    peers, gains = report["peers"], report["gains"]
    callers = list(next(iter(peers.values()), {}))
    left_out = [f"Left out: {name}: {why}." for name, why in report["left_out"].items()]
    return "\n\n".join(
        [
            (
                f"{report['tokens']} new tokens an answer, greedy; medians of {report['rounds']} "
                "rounds."
            ),
            _table(
                "tokens/s for … callers",
                callers,
                {n: [f"{f[c]['tokens_per_s']:.0f}" for c in callers] for n, f in peers.items()},
            ),
            _table(
                "first token p50 / p99, between tokens p99, ms",
                callers,
                {n: [_latencies(f[c]) for c in callers] for n, f in peers.items()},
            ),
            _table(
                "ratio of tokens/s, of first token p50",
                callers,
                {
                    name: [f"{r[c]['tokens_per_s']:.2f}, {r[c]['first_p50']:.2f}" for c in callers]
                    for name, r in report["ratios"].items()
                },
            ),
            _table(
                "tokens/s by those of the fewest callers",
                callers,
                {n: [f"{g[c]['tokens_per_s']:.2f}" for c in callers] for n, g in gains.items()},
            ),
            _table(
                "first token after a system prompt of 500 tokens, one caller, ms",
                ["never seen", "seen before", "share"],
                {
                    n: [f"{r['cold_ms']:.0f}", f"{r['warm_ms']:.0f}", f"{r['share']:.0%}"]
                    for n, r in report["repeated"].items()
                },
            ),
            _table(
                "memory, MiB",
                ["at the end"],
                {n: [f"{held:.0f}"] for n, held in report["memory_mib"].items()},
            ),
            *left_out,
        ]
    )


def _table(title: str, columns: list[str], rows: dict[str, list[str]]) -> str:
    lines = [f"| {title} | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    return "\n".join(lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()])


def _latencies(figures: dict[str, float]) -> str:
    return (
        f"{figures['first_p50_ms']:.0f} / {figures['first_p99_ms']:.0f}, "
        f"{figures['gap_p99_ms']:.0f}"
    )


def plot(report: dict[str, Any], path: Path) -> None:
    """Tokens a second and time to the first token over the number of callers."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for axis, key, label in zip(
        axes,
        ("tokens_per_s", "first_p50_ms"),
        ("tokens a second, all callers", "time to the first token, p50, ms"),
        strict=True,
    ):
        for name, figures in report["peers"].items():
            callers = np.array([int(each) for each in figures])
            style = "-o" if name.startswith("ours") else "--s"
            axis.plot(callers, [each[key] for each in figures.values()], style, label=name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(callers, [str(each) for each in callers])
        axis.set_yscale("log")
        axis.set_xlabel("callers")
        axis.set_ylabel(label)
    axes[0].legend(fontsize=7)
    figure.suptitle("SmolLM2-135M")
    figure.savefig(path, dpi=110)
    plt.close(figure)
