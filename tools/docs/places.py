"""Places of the generated tables in the documents: `<!-- NAME -->` to `<!-- end NAME -->`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
API = ROOT / "docs" / "api.md"
OPERATIONS = ROOT / "docs" / "operations.md"
PIPELINES = ROOT / "docs" / "pipelines.md"
ARCHITECTURES = ROOT / "docs" / "architectures.md"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
FAULTS = ROOT / "docs" / "faults.md"
SCALE = ROOT / "docs" / "scale.md"


def place(text: str, name: str, table: str) -> str:
    """The text with the part between a table's marks replaced.

    Raises:
        SystemExit: the marks are missing.
    """
    start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        sys.exit(f"the document has no place for the table {name!r}")
    return f"{before}{start}{table.strip()}\n{end}{after}"


def taken(text: str, name: str) -> str:
    """The part of the text between a table's marks.

    Raises:
        SystemExit: the marks are missing.
    """
    _, found, rest = text.partition(f"<!-- {name} -->\n")
    table, closed, _ = rest.partition(f"<!-- end {name} -->")
    if not (found and closed):
        sys.exit(f"the document has no table {name!r}")
    return table


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
