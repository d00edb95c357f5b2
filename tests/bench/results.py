"""The options of all benchmarks, and the files they write."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.machine import Machine
from tests.support.stack import ROOT

OUT = ROOT / "out" / "bench"


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks take.

    Args:
        doc: the module's; its first line describes the benchmark.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument(
        "--busy", action="store_true", help="measure on a busy machine too; the table says so"
    )
    parser.add_argument(
        "--short", action="store_true", help="only what the README and the goals need"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    return parser


def publish(
    folder: Path, name: str, machine: Machine, report: Mapping[str, Any], table: str
) -> None:
    """Prints a table under what it was measured on, and writes both as NAME.json and NAME.md.

    `make figures` takes NAME.md into the documents.
    """
    folder.mkdir(parents=True, exist_ok=True)
    everything = {"machine": dataclasses.asdict(machine), **report}
    (folder / f"{name}.json").write_text(json.dumps(everything, indent=2) + "\n")
    text = f"{machine.heading()}\n\n{table}"
    (folder / f"{name}.md").write_text(text + "\n")
    print(text)
