"""Writes the generated tables of the documents: `python -m tools.docs [--check] [--figures]`.

A table stands between `<!-- NAME -->` and `<!-- end NAME -->`; all other text is left alone. Tables
that describe the code are made from the code. Figures come from what the benchmarks wrote to
`out/bench/`, into docs/benchmarks.md, and from what the attacks, the faults and the trial of
architectures wrote to `out/`, into docs/operations.md, docs/faults.md and docs/architectures.md;
README.md's figures and the plot are made from docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.docs import figures, tables
from tools.docs.places import (
    API,
    ARCHITECTURES,
    BENCHMARKS,
    FAULTS,
    OPERATIONS,
    PIPELINES,
    README,
    ROOT,
    SCALE,
    place,
)

# The tables made from the code, by document and name.
TABLES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    API: {
        "rpcs": tables.rpcs_table,
        "errors": tables.errors_table,
        "load options": tables.load_options_table,
    },
    PIPELINES: {"pipelines": tables.pipelines_table, "kinds": tables.kinds_table},
    OPERATIONS: {
        "models": tables.models_table,
        "settings": tables.settings_table,
        "metrics": tables.metrics_table,
        "alerts": tables.alerts_table,
    },
}
# The tables that the benchmarks and the attacks write, by document and name.
MEASURED: Mapping[Path, Mapping[str, Path]] = {
    BENCHMARKS: {
        f"{name} benchmark": ROOT / f"out/bench/{name}.md"
        for name in (
            "text",
            "servers",
            "perplexity",
            "embeddings",
            "vision",
            "vision_profile",
            "scenes",
            "vision_memory",
            "link",
            "cpu",
            "door",
            "files",
            "fairness",
            "autoload",
            "connections",
            "loads",
        )
    },
    OPERATIONS: {
        "attacks": ROOT / "out/hostile.md",
        "model memory": ROOT / "out/bench/model_memory.md",
    },
    ARCHITECTURES: {"architectures": ROOT / "out/architectures.md"},
    FAULTS: {"faults": ROOT / "out/chaos.md"},
    SCALE: {"scale benchmark": ROOT / "out/bench/scale.md"},
}


def rendered(take_figures: bool) -> dict[Path, str]:
    """The documents with their generated tables made anew.

    Args:
        take_figures: whether to take in what was measured here.
    """
    documents = {path: path.read_text() for path in (README, *TABLES, *MEASURED)}
    for path, makers in TABLES.items():
        for name, table in makers.items():
            documents[path] = place(documents[path], name, table())
    for document, tables_of in MEASURED.items():
        for name, path in tables_of.items():
            if take_figures and path.exists():
                documents[document] = place(documents[document], name, path.read_text())
    measured = figures.read(documents[BENCHMARKS])
    six = f"{figures.table(measured)}\n\n{figures.conditions(documents[BENCHMARKS])}"
    documents[README] = place(documents[README], "figures", six)
    return documents


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    parser.add_argument("--figures", action="store_true", help="take in measured tables")
    options = parser.parse_args()
    documents = rendered(options.figures)
    measured = figures.read(documents[BENCHMARKS])
    stale = [path for path, text in documents.items() if path.read_text() != text]
    if not figures.plot_is_current(measured):
        stale.append(figures.PLOT)
    if options.check:
        if stale:
            names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
            sys.exit(f"not up to date: {names}; run `make docs`")
        return
    for path in stale:
        if path == figures.PLOT:
            figures.plot(measured)
        else:
            path.write_text(documents[path])


if __name__ == "__main__":
    main()
