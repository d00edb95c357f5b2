"""The vision benchmark's figures as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

_HEAD = (
    "| "
    + " | ".join(
        [
            *("task", "format", "(a) call fps", "(b) decode + call fps", "(c) stream fps"),
            *("c/b 1", "c/b 2", "c/b 4", "c2/c1", "b2/b1"),
            *("(b) p50 / p99 ms", "(c) p50 / p99 ms", "added p50 ms", "CPU ms a frame (b) / (c)"),
        ]
    )
    + " |"
)

_COLOURS = {
    "call, in process": "silver",
    "decode + call, in process": "tab:blue",
    "stream through Envoy": "tab:orange",
}


def _row(task: str, name: str, arms: dict[str, dict[str, float]]) -> str:
    ratios = [arms[f"c{n}"]["fps"] / arms[f"b{n}"]["fps"] for n in (1, 2, 4)]
    step, own = arms["c1 lock step"], arms["b1"]
    cells = [
        task,
        name,
        f"{arms['a1']['fps']:.1f}",
        f"{own['fps']:.1f}",
        f"{arms['c1']['fps']:.1f}",
        *(f"{ratio:.2f}" for ratio in ratios),
        f"{arms['c2']['fps'] / arms['c1']['fps']:.2f}",
        f"{arms['b2']['fps'] / own['fps']:.2f}",
        f"{own['p50_ms']:.1f} / {own['p99_ms']:.1f}",
        f"{step['p50_ms']:.1f} / {step['p99_ms']:.1f}",
        f"{step['p50_ms'] - own['p50_ms']:.1f}",
        f"{own['cpu_ms']:.1f} / {arms['c1']['cpu_ms']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _ages(report: dict[str, Any]) -> str:
    lines = ["| task | latest at 60 fps: age p50 / p95 ms | two frame times ms |", "|---|---|---|"]
    for task, figures in report["tasks"].items():
        formats = [arms for name, arms in figures.items() if name != "latest"]
        frame_ms = max(1000 / 60, max(arms["b1"]["p50_ms"] for arms in formats))
        latest = figures["latest"]
        lines.append(
            f"| {task} | {latest['p50_ms']:.1f} / {latest['p95_ms']:.1f} | {2 * frame_ms:.1f} |"
        )
    return "\n".join(lines)


def table(report: dict[str, Any]) -> str:
    """Markdown: throughput and latency, then the ages under "latest"."""
    lines = [_HEAD, "|" + "---|" * (_HEAD.count("|") - 1)]
    for task, figures in report["tasks"].items():
        lines += [_row(task, name, arms) for name, arms in figures.items() if name != "latest"]
    rounds = f"medians of {report['rounds']} rounds of {report['seconds']:g} s"
    return "\n".join(
        [
            f"640 x 480; {rounds}; the client of (c) is {report['client']}.",
            "",
            *lines,
            "",
            _ages(report),
        ]
    )


def plot(report: dict[str, Any], path: Path) -> None:
    """Frames a second of the three ways, a panel for each format and number of streams."""
    tasks = list(report["tasks"])
    formats = [name for name in report["tasks"][tasks[0]] if name != "latest"]
    figure, axes = plt.subplots(
        len(formats), 3, figsize=(16, 4.2 * len(formats)), squeeze=False, layout="constrained"
    )
    places = np.arange(len(tasks))
    for row, name in zip(axes, formats, strict=True):
        for axis, streams in zip(row, (1, 2, 4), strict=True):
            arms = {
                "decode + call, in process": f"b{streams}",
                "stream through Envoy": f"c{streams}",
            }
            if streams == 1:
                arms = {"call, in process": "a1", **arms}
            width = 0.8 / len(arms)
            for number, (label, arm) in enumerate(arms.items()):
                values = [report["tasks"][task][name][arm]["fps"] for task in tasks]
                left = places + (number + 0.5) * width - 0.4
                bars = axis.bar(left, values, width, label=label, color=_COLOURS[label])
                axis.bar_label(bars, fmt="%.0f", fontsize=6)
            axis.set_title(f"{name}, {streams} stream{'s' if streams > 1 else ''}")
            axis.set_xticks(places, tasks)
            axis.set_ylabel("frames a second, all streams")
            axis.set_yscale("log")
            axis.legend(fontsize=7)
    figure.suptitle("Vision at 640 x 480")
    figure.savefig(path, dpi=110)
    plt.close(figure)
