"""Notices that a model's process hangs, and leaves one alone that is merely slow.

The front pings the process, whose event loop answers and tells how its steps go on. Three things
are signs of life:

* an answer to a ping;
* a finished step, while there is work: see `text_svc.worker.steps`;
* CPU time, pages read from the disk, or a thread that is ready and gets no core, in place of
  either. A step may take minutes: the first one reads the weights, a large model on few cores reads
  a prompt slowly, and other programs may take nearly all of the cores. A process that is stopped,
  or whose threads wait for each other, has none of these.

A process without any of them for `hang_seconds` hangs. One that computes but answers nothing, or
ends no step, for `max_step_seconds` is taken to be in an endless loop. All times are counted in
pings, not read from a clock: when the whole machine or container was asleep, no time has passed.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from shared.telemetry.process_metrics import (
    process_figures,
    process_tree,
    tree_figures,
    wants_core,
)
from text_svc.link.client import Link

# Pings within `hang_seconds`.
PINGS = 6
# Share of one core, and pages a second from the disk, from which on a process is at work. One that
# waits takes a tenth of a percent, for its answers to pings.
MIN_CORE_SHARE = 0.01
MIN_PAGES = 5.0


@dataclass(frozen=True)
class _Symptom:
    """What is missing, and for how many pings."""

    text: str
    pings: int
    whole_tree: bool  # whether children may do the work that is missing


@dataclass(frozen=True)
class _Usage:
    """What processes have used since their start.

    Attributes:
        cpu_seconds: on a core.
        pages: read from the disk.
        wants_core: whether one of them would go on at this moment if it had a core.
    """

    cpu_seconds: float
    pages: int
    wants_core: bool = False

    def works(self, before: _Usage, seconds: float) -> bool:
        """Whether the time since an earlier look was used."""
        cores = (self.cpu_seconds - before.cpu_seconds) / seconds
        pages = (self.pages - before.pages) / seconds
        return not cores < MIN_CORE_SHARE or pages >= MIN_PAGES or self.wants_core


async def until_hung(link: Link, pid: int, hang_seconds: float, max_step_seconds: float) -> str:
    """Pings a process until it hangs; returns what it did not do, for messages and logs."""
    interval = hang_seconds / PINGS
    since: _Symptom | None = None
    before = _Usage(0, 0)  # at `since`
    while True:
        link.ping()
        await asyncio.sleep(interval)
        symptom = _symptom(link)
        if symptom is None:
            since = None
            continue
        seconds = symptom.pings * interval
        if seconds >= max_step_seconds:
            return f"{symptom.text} for {seconds:g} s"
        if since is None or since.text != symptom.text:
            since, before = symptom, await _usage(pid, symptom)
        elif symptom.pings - since.pings >= PINGS - 1:
            now = await _usage(pid, symptom)
            if not now.works(before, (PINGS - 1) * interval):
                return f"{symptom.text} for {seconds:g} s and did not compute either"
            since, before = symptom, now


def _symptom(link: Link) -> _Symptom | None:
    if link.unanswered:
        return _Symptom("it did not answer", link.unanswered, whole_tree=False)
    if link.stuck:
        return _Symptom("it had work and finished no step", link.stuck, whole_tree=True)
    return None


async def _usage(pid: int, symptom: _Symptom) -> _Usage:
    def read() -> _Usage:
        figures = (tree_figures if symptom.whole_tree else process_figures)(pid)
        if figures is None:  # without /proc: only a process that answers may be at a long step
            return _Usage(math.nan if symptom.whole_tree else 0, 0)
        pids = process_tree(pid) if symptom.whole_tree else [pid]
        return _Usage(figures.cpu_seconds, figures.major_faults, any(map(wants_core, pids)))

    return await asyncio.to_thread(read)
