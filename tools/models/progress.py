"""Progress of fetching models: bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

LINE_INTERVAL_SECONDS = 5.0

Update = Callable[[int], None]
"""Tells how many bytes of a task are done so far."""


def megabytes(count: int) -> str:
    """Format a number of bytes."""
    return f"{count / 1e6:.1f} MB"


class Reporter(Protocol):
    """Reports progress. Safe to call from several threads."""

    def line(self, text: str) -> None:
        """Print one line."""

    def task(self, label: str, total: int | None = None) -> AbstractContextManager[Update]:
        """Show work while it lasts; `total` is in bytes, or None when it cannot be known."""


class PlainReporter:
    """A line when work begins, one every few seconds while it lasts, and one when it is done."""

    def line(self, text: str) -> None:
        print(f"{text}\n", end="", flush=True)  # one write: threads do not mix their lines

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Update]:
        self.line(f"{label} ({megabytes(total)}) ..." if total else f"{label} ...")
        started = last = time.monotonic()

        def update(done: int) -> None:
            nonlocal last
            if total and time.monotonic() - last >= LINE_INTERVAL_SECONDS:
                last = time.monotonic()
                self.line(f"{label}: {megabytes(done)} of {megabytes(total)}")

        yield update
        self.line(f"{label}: done in {time.monotonic() - started:.1f} s")


class BarReporter:
    """A bar for each task that is running."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def line(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Update]:
        shown = self._progress.add_task(label, total=total, amount="")

        def update(done: int) -> None:
            amount = f"{megabytes(done)} of {megabytes(total)}" if total else ""
            self._progress.update(shown, completed=done, amount=amount)

        started = time.monotonic()
        try:
            yield update
        finally:
            self._progress.remove_task(shown)
        self.line(f"{label}: done in {time.monotonic() - started:.1f} s")


@contextmanager
def reporter() -> Iterator[Reporter]:
    """Give the reporter that suits standard output."""
    if not sys.stdout.isatty():
        yield PlainReporter()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        yield BarReporter(progress)
