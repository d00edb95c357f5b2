"""The table of results in docs/architectures.md: written by a run, and read by a test."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.architectures.comparison import EQUAL
from tests.architectures.mappings import Case, cases

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "architectures.md"
# What a run has written, of which `make figures` takes the table into the document.
WRITTEN = ROOT / "out" / "architectures.md"
NOT_RUN = "not run"
_MARKS = "<!-- architectures -->", "<!-- end architectures -->"


def write(results: Mapping[Case, str]) -> None:
    """Writes the table of all cases, of which some may have no result."""
    results = {case: results.get(case, NOT_RUN) for case in cases()}
    WRITTEN.parent.mkdir(exist_ok=True)
    WRITTEN.write_text("\n".join([*_counts(results), "", *_rows(results)]) + "\n")


def read() -> dict[Case, str]:
    """The results that the document promises."""
    by_name = {(name, case.pipeline, case.engine): case for case, name in _names().items()}
    results = {}
    text = DOCUMENT.read_text().partition(_MARKS[0])[2].partition(_MARKS[1])[0]
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) != 4:
            continue
        names, pipeline, engine, result = cells
        for name in names.split(", "):
            if case := by_name.get((name, pipeline, engine)):
                results[case] = result
    return results


def kind(result: str) -> str:
    """What a result is, without its reason."""
    return result.partition(":")[0].partition(",")[0]


def _names() -> dict[Case, str]:
    """Architectures; with the model type where two of a pipeline have the same class."""
    known = cases()
    count = Counter((case.architecture, case.pipeline, case.engine) for case in known)
    return {
        case: case.architecture
        if count[case.architecture, case.pipeline, case.engine] == 1
        else f"{case.architecture} ({case.model_type})"
        for case in known
    }


def _counts(results: Mapping[Case, str]) -> Iterator[str]:
    kinds = sorted(
        {kind(result) for result in results.values()}, key=lambda each: (each != EQUAL, each)
    )
    yield _row("pipeline", "engine", *kinds)
    yield _row("---", "---", *["---:"] * len(kinds))
    counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for case, result in results.items():
        counts[case.pipeline, case.engine][kind(result)] += 1
    for (pipeline, engine), found in sorted(counts.items()):
        yield _row(pipeline, engine, *(str(found[each] or "") for each in kinds))


def _rows(results: Mapping[Case, str]) -> Iterator[str]:
    """Architectures with the same result share a row."""
    yield _row("architecture", "pipeline", "engine", "result")
    yield _row(*["---"] * 4)
    names = _names()
    groups: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for case, result in sorted(results.items()):
        said = " ".join(result.split()).replace("|", "/").replace("<", "&lt;")
        groups[case.pipeline, case.engine, said].append(names[case])
    order = sorted(groups, key=lambda key: (key[0], key[1], key[2] != EQUAL, key[2]))
    for pipeline, engine, result in order:
        yield _row(", ".join(groups[pipeline, engine, result]), pipeline, engine, result)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
