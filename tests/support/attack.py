"""Attacks: while a test runs one, memory is sampled and a bystander makes ordinary calls."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from ml import common_pb2, model_management_pb2_grpc
from tests.support.observer import Memory, Order, Report
from tests.support.stack import EMBEDDER, ROOT, Stack, open_channel

FIGURES = ROOT / "out" / "hostile.json"
TABLE = FIGURES.with_suffix(".md")
# The bystander's calls; the embedding only where its model is loaded.
ORDINARY = ("models", "faces", "embedding")
# A property of a test's report: the summary of an attack.
PROPERTY = "attack"
_REPORT_SECONDS = 300


@dataclass
class Seen:
    """What an attack did.

    Attributes:
        item: the number and name of the attack.
        promise: what the test shows to be so.
        words: what the test says was seen.
        report: memory and the bystander's calls; None until the attack is over.
        held: whether the bystander was served and the stack lived.
    """

    item: str
    promise: str
    words: list[str] = field(default_factory=list)
    report: Report | None = None
    held: bool = False

    def say(self, words: str) -> None:
        """Adds to the line that is printed at the end."""
        self.words.append(words)

    @property
    def most_grown(self) -> Memory | None:
        """The process whose memory grew most."""
        memory = self.report.memory.values() if self.report else ()
        return max(memory, key=lambda each: each.worst - each.before, default=None)

    @property
    def worst_seconds(self) -> float | None:
        """The bystander's slowest call, if there was a bystander."""
        calls = self.report.calls.values() if self.report else ()
        return max((each.worst_seconds for each in calls), default=None)

    def line(self) -> str:
        """All in a line."""
        parts = [f"{self.item}: {'; '.join(self.words) or ('held' if self.held else 'FAILED')}"]
        if grown := self.most_grown:
            before, worst, after = (mib(size) for size in (grown.before, grown.worst, grown.after))
            parts.append(f"{grown.name} {before} / {worst} / {after} MiB")
        if (seconds := self.worst_seconds) is not None:
            parts.append(f"bystander at worst {seconds:.2f} s")
        return " | ".join(parts)

    def summary(self) -> dict[str, object]:
        """The item, its line, and its figures if it held."""
        return {
            "item": self.item,
            "line": self.line(),
            "figures": self.figures() if self.held else None,
        }

    def figures(self) -> dict[str, object]:
        """For the file of figures."""
        assert self.report is not None
        processes = {f"{each.name} {pid}": each for pid, each in self.report.memory.items()}
        return {
            "promise": self.promise,
            "seen": "; ".join(self.words),
            "memory": {name: each.model_dump(exclude={"name"}) for name, each in processes.items()},
            "bystander": {kind: each.model_dump() for kind, each in self.report.calls.items()},
            "row": self._row(),
        }

    def _row(self) -> list[str]:
        grown, seconds = self.most_grown, self.worst_seconds
        memory = [grown.name, *map(mib, (grown.before, grown.worst, grown.after))] if grown else []
        return [
            self.item,
            self.promise,
            *(memory or [""] * 4),
            "" if seconds is None else f"{seconds:.2f}",
        ]


def mib(size: int) -> str:
    """Bytes as MiB; a dash for a process that was not there."""
    return f"{size >> 20}" if size else "–"  # noqa: RUF001  a dash, as in a table


def write_figures(summaries: Iterable[Mapping[str, Any]]) -> None:
    """Adds to out/hostile.json, and writes the table of all that is in it to out/hostile.md."""
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    known |= {each["item"]: each["figures"] for each in summaries if each["figures"]}
    known = dict(sorted(known.items(), key=lambda pair: int(pair[0].partition(" ")[0])))
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(json.dumps(known, indent=1) + "\n")
    head = ("attack", "what is promised", "most grown", "before", "worst", "after", "bystander, s")
    align = ("---",) * 3 + ("---:",) * 4
    rows = (head, align, *(each["row"] for each in known.values()))
    TABLE.write_text("".join(f"| {' | '.join(row)} |\n" for row in rows))


def report_attacks(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for each attack: memory before / at the worst / after, and the bystander."""
    summaries = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
        for name, value in report.user_properties
        if name == PROPERTY and isinstance(value, dict)
    ]
    if not summaries:
        return
    summaries.sort(key=lambda each: int(each["item"].partition(" ")[0]))
    write_figures(summaries)
    terminalreporter.section("attacks")
    for summary in summaries:
        terminalreporter.line(summary["line"])


class Attacks:
    """Makes attacks, as a fixture: `with attack("2 header of weights", stack) as seen:`."""

    def __init__(self, promise: str, record: list[Seen]) -> None:
        self._promise = promise
        self._record = record

    @contextlib.contextmanager
    def __call__(
        self,
        item: str,
        stack: Stack | None = None,
        *,
        processes: Iterable[int | subprocess.Popen[bytes]] = (),
        bystander: Sequence[str] | None = ORDINARY,
        address: str = "",
        metadata: Mapping[str, str] | None = None,
        ends: Sequence[str] = (),
    ) -> Iterator[Seen]:
        """Watches until the end of the block; then a bystander without service is a failure.

        Args:
            item: number and name, for the lines that are printed.
            stack: whose processes are watched, and through whose Envoy the bystander calls.
            processes: more processes to watch, with all that they start.
            bystander: its calls, some of "models", "faces" and "embedding"; None for no bystander.
            address: where the bystander calls instead.
            metadata: what the bystander sends with each call.
            ends: services of the stack that the attack ends on purpose; the others must live.
        """
        address = address or (stack.addresses["envoy"] if stack else "")
        calls = list(bystander or ()) if address else []
        metadata = metadata or {}
        if bystander is ORDINARY and address and not _embeds(address, metadata):
            calls.remove("embedding")
        order = Order(
            mark=stack.mark if stack else "",
            state_file=stack.state_file if stack else None,
            pids=[each if isinstance(each, int) else each.pid for each in processes],
            address=address,
            calls=calls,
            metadata=list(metadata.items()),
        )
        pids = _pids(stack)
        seen = Seen(item, self._promise)
        with _observer(order) as report:
            yield seen
            seen.report = report()
        now = _pids(stack)
        died = {name for name, pid in pids.items() if now.get(name) != pid}
        self._record.append(seen)
        assert died <= set(ends), f"{', '.join(sorted(died - set(ends)))} did not survive"
        for kind, each in seen.report.calls.items():
            failures = f"{len(each.failures)} of the bystander's calls of {kind} failed"
            assert not each.failures, f"{failures}: {each.failures[:3]}"
            assert each.count, f"the bystander got no answer to its calls of {kind}"
        seen.held = True


def _embeds(address: str, metadata: Mapping[str, str]) -> bool:
    """Whether the embedding model is loaded."""
    with open_channel(address) as channel:
        stub = model_management_pb2_grpc.ModelManagementServiceStub(channel)
        request, pairs = common_pb2.EmptyRequest(), tuple(metadata.items())
        loaded = stub.GetLoadedModels(request, timeout=60, metadata=pairs, wait_for_ready=True)
    return EMBEDDER in {each.model_id for each in loaded.models}


def _pids(stack: Stack | None) -> dict[str, int]:
    """The processes of a stack that runs, by name."""
    with contextlib.suppress(FileNotFoundError):
        return stack.pids if stack else {}
    return {}


@contextlib.contextmanager
def _observer(order: Order) -> Iterator[Callable[[], Report]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.support.observer"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(order.model_dump_json() + "\n")
        child.stdin.flush()
        assert child.stdout.readline() == "ready\n", "the observer did not start"

        def report() -> Report:
            said, _ = child.communicate(timeout=_REPORT_SECONDS)
            return Report.model_validate_json(said)

        yield report
    finally:
        child.kill()
        child.communicate()
