"""The figures of README.md: its table and the plot, made from the tables in docs/benchmarks.md."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import matplotlib as mpl

from tools.docs.places import ROOT, row, taken

mpl.use("svg")
from matplotlib import pyplot as plt  # the backend comes first
from matplotlib.axes import Axes

PLOT = ROOT / "docs" / "benchmarks.svg"
TASKS = ("faces", "mesh", "iris", "hands", "pose", "holistic", "selfie", "hair")
TEXT_CALLERS = ("1", "8", "16")
EMBEDDING_CALLERS = ("1", "8", "32")
# As the benchmark calls one caller that sends all sentences at once, the library's best case.
ALL_AT_ONCE = "1 of 512"
# README's six, by unit and name.
CHOSEN = (
    *(("tokens/s", "1 caller"), ("tokens/s", "16 callers"), ("sentences/s", "32 callers")),
    *(("frames/s", "faces"), ("frames/s", "pose"), ("frames/s", "hair")),
)
OURS, LIBRARY = "#1f77b4", "#9a9a9a"


@dataclass(frozen=True)
class Figure:
    """One measurement against the library in process.

    Attributes:
        group: what was measured, such as "text".
        name: the case, such as "16 callers".
        unit: of both rates.
        library: what ran in process.
        ours: the rate through Envoy.
        theirs: the library's rate.
    """

    group: str
    name: str
    unit: str
    library: str
    ours: float
    theirs: float


def _tables(text: str) -> list[list[list[str]]]:
    """The Markdown tables in a text: rows of cells, the head first, without the line below it."""
    tables: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif not inside:
            tables.append([cells])
            inside = True
        elif not set("".join(cells)) <= set("-:"):
            tables[-1].append(cells)
    return tables


def _starting(rows: Sequence[list[str]], *starts: str) -> list[str]:
    """The first row whose first cells start like this; the Rust client's come before Python's."""
    for each in rows:
        if all(cell.startswith(start) for cell, start in zip(each, starts, strict=False)):
            return each
    raise LookupError(f"the benchmark has no row {' '.join(starts)}")


def _text(table: list[list[str]]) -> Iterator[Figure]:
    head, *rows = table
    ours = _starting(rows, "ours, float32 (")
    theirs = _starting(rows, "OpenVINO GenAI, float32 (")
    for callers in TEXT_CALLERS:
        column = head.index(callers)
        yield Figure(
            "text generation, SmolLM2-135M float32",
            f"{callers} caller{'s' * (callers != '1')}",
            "tokens/s",
            "OpenVINO GenAI",
            float(ours[column]),
            float(theirs[column]),
        )


def _embeddings(table: list[list[str]]) -> Iterator[Figure]:
    head, *rows = table
    rate, callers_column = head.index("sentences/s"), head.index("callers")
    at_once = [each for each in rows if each[callers_column] == ALL_AT_ONCE]
    best = _starting(at_once, "sentence-transformers")
    for callers in EMBEDDING_CALLERS:
        mine = [each for each in rows if each[callers_column] == callers]
        ours = _starting(mine, "ours, float32")
        yield Figure(
            "embeddings, all-MiniLM-L6-v2 float32",
            f"{callers} caller{'s' * (callers != '1')}",
            "sentences/s",
            "sentence-transformers, all in one call",
            float(ours[rate]),
            float(best[rate]),
        )


def _vision(table: list[list[str]]) -> Iterator[Figure]:
    head, *rows = table
    ours, theirs = head.index("(c) stream fps"), head.index("(b) decode + call fps")
    for task in TASKS:
        found = _starting(rows, task, "jpeg")
        yield Figure(
            "vision stream, 640 x 480 jpeg",
            task,
            "frames/s",
            "MediaPipe or LiteRT, with decoding",
            float(found[ours]),
            float(found[theirs]),
        )


def read(benchmarks: str) -> list[Figure]:
    """The figures in the text of docs/benchmarks.md."""
    text = _tables(taken(benchmarks, "text benchmark"))[0]
    embeddings = _tables(taken(benchmarks, "embeddings benchmark"))[0]
    vision = _tables(taken(benchmarks, "vision benchmark"))[0]
    return [*_text(text), *_embeddings(embeddings), *_vision(vision)]


def conditions(benchmarks: str) -> str:
    """The machine, the cores that each benchmark found free, before and after it, and which
    benchmarks were run on a busy machine."""
    found, busy, machine = [], [], ""
    for name in ("text", "embeddings", "vision"):
        head = taken(benchmarks, f"{name} benchmark").partition("\n|")[0]
        cores = re.search(r"[Ee]ffective cores ([\d.]+) before, ([\d.]+) after", head)
        found.append(f"{name} {' and '.join(cores.groups())}" if cores else f"{name} unknown")
        if "busy machine" in head:
            busy.append(name)
        if described := re.search(r"Measured on ([^;]+);", head):
            machine = f"{described[1]}. "
    told = f"{machine}Effective cores before and after: {', '.join(found)}."
    return f"{told} Taken on a busy machine: {', '.join(busy)}." if busy else told


def table(figures: Sequence[Figure]) -> str:
    """README.md's table of six."""
    lines = [row("", "ours", "in process", "library", "ratio"), "|---|---:|---:|---|---:|"]
    for each in figures:
        if (each.unit, each.name) not in CHOSEN:
            continue
        rates = (f"{rate:.0f} {each.unit}" for rate in (each.ours, each.theirs))
        ratio = f"{each.ours / each.theirs:.2f}"
        lines.append(row(f"{each.group}, {each.name}", *rates, each.library, ratio))
    return "\n".join(lines)


def _digest(figures: Sequence[Figure]) -> str:
    return hashlib.sha256(json.dumps([asdict(each) for each in figures]).encode()).hexdigest()


def plot_is_current(figures: Sequence[Figure]) -> bool:
    """Whether the plot on the disk was made from these figures."""
    return PLOT.exists() and _digest(figures) in PLOT.read_text()


def _panel(axes: Axes, figures: Sequence[Figure]) -> None:
    places = range(len(figures))
    library, _, _ = figures[0].library.partition(",")
    for shift, label, colour, rates in (
        (-0.2, "ours, through Envoy", OURS, [each.ours for each in figures]),
        (0.2, f"{library}, in process", LIBRARY, [each.theirs for each in figures]),
    ):
        bars = axes.bar([place + shift for place in places], rates, 0.4, label=label, color=colour)
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(list(places), [each.name for each in figures], fontsize=8)
    axes.set_title(figures[0].group, fontsize=8)
    axes.set_ylabel(figures[0].unit, fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.25)  # room for the legend above the bars
    axes.legend(fontsize=7, frameon=False, loc="best")


def plot(figures: Sequence[Figure]) -> None:
    """Writes docs/benchmarks.svg: a panel each for text, embeddings and vision."""
    groups = list(dict.fromkeys(each.group for each in figures))
    mpl.rcParams["svg.hashsalt"] = "figures"  # the same figures make the same file
    mpl.rcParams["svg.fonttype"] = "none"
    figure, panels = plt.subplots(
        1, len(groups), figsize=(12, 3.4), width_ratios=(3, 3, 7), layout="constrained"
    )
    for axes, group in zip(panels, groups, strict=True):
        _panel(axes, [each for each in figures if each.group == group])
    figure.savefig(PLOT, metadata={"Date": None, "Description": _digest(figures)})
    plt.close(figure)
