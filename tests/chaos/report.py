"""The table of a run, for people and for docs/faults.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.checker import Verdict, median

HEAD = ("fault", "times", "calls hit", "right", "refused", "wrong", "s to recover, p50", "max")


def table(verdict: Verdict) -> str:
    """A row for each fault."""
    lines = [HEAD, ("---", *["---:"] * (len(HEAD) - 1))]
    for row in sorted(verdict.rows, key=lambda each: each.name):
        counts = (row.times, row.calls, row.right, row.refused, row.wrong)
        seconds = ("", "")
        if row.seconds:
            seconds = (f"{median(row.seconds):.1f}", f"{max(row.seconds):.1f}")
        lines.append((row.name, *map(str, counts), *seconds))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def runs(seeds: Sequence[int], minutes: float) -> str:
    """Says which runs a table is of."""
    each = [
        f"{seed} ({times} times)" if times > 1 else f"{seed}"
        for seed, times in sorted(Counter(seeds).items())
    ]
    length = f"{minutes:g} minutes of faults and storms"
    return f"Runs: {len(seeds)}, each with {length}. Seeds: {', '.join(each)}."


def write(verdict: Verdict, told: str, path: Path) -> None:
    """Writes the table into a file, from which `make figures` takes it into the documents.

    Args:
        verdict: of all runs together.
        told: a sentence on the runs, above the table.
        path: of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{told}\n\n{table(verdict)}")


def text(verdict: Verdict) -> str:
    """All that a run has shown."""
    calls = [
        f"{kind}: " + ", ".join(f"{count} {word}" for word, count in counts.items())
        for kind, counts in sorted(verdict.calls.items())
    ]
    failures = [f"FAILED: {each}" for each in verdict.failures] or ["all as promised"]
    return "\n".join([table(verdict), *calls, "", *failures])
