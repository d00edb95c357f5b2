"""What is read of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

import psutil
import pytest
from prometheus_client import REGISTRY

from shared.telemetry.process_metrics import (
    ProcessFigures,
    process_figures,
    proportional_bytes,
    tree_figures,
)
from tests.support.stack import wait_for

T = TypeVar("T")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")


def at_one_moment(
    ours: Callable[[], ProcessFigures | None], known: Callable[[], T]
) -> tuple[ProcessFigures, T]:
    """Our figures and those of psutil, read while nothing moves: ours are the same after them."""

    def agreed() -> tuple[ProcessFigures, T] | None:
        before, value, after = ours(), known(), ours()
        return (after, value) if after and before == after else None

    figures = wait_for("a moment without change", agreed)
    assert figures
    return figures


def test_the_figures_are_those_of_the_process() -> None:
    code = (
        "import threading, sys; threading.Thread(target=sys.stdin.read).start(); print(flush=True)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        known, pid = psutil.Process(process.pid), process.pid
        figures, (fds, rss, cpu) = at_one_moment(
            lambda: process_figures(pid),
            lambda: (known.num_fds(), known.memory_info().rss, sum(known.cpu_times()[:2])),
        )
        assert figures.threads == 2
        assert figures.open_fds == fds
        # The kernel counts pages in batches, a batch a processor.
        assert figures.resident_bytes == pytest.approx(rss, rel=0.2)
        assert figures.cpu_seconds == pytest.approx(cpu)
        process.communicate()
    assert process_figures(process.pid) is None


def test_a_tree_has_the_figures_of_all_its_processes() -> None:
    sleeper = "import sys; print(flush=True); sys.stdin.read()"
    code = (
        "import subprocess, sys, threading\n"
        f"start = lambda: subprocess.Popen((sys.executable, '-c', {sleeper!r}))\n"
        "start(); thread = threading.Thread(target=lambda: (start(), sys.stdin.read()))\n"
        "thread.start(); thread.join()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline(), process.stdout.readline()
        family = [each := psutil.Process(process.pid), *each.children()]
        assert len(family) == 3
        pid = process.pid
        figures, (fds, resident) = at_one_moment(
            lambda: tree_figures(pid),
            lambda: (
                sum(each.num_fds() for each in family),
                sum(each.memory_info().rss for each in family),
            ),
        )
        assert figures.threads == 4
        assert figures.open_fds == fds
        assert figures.resident_bytes == pytest.approx(resident, rel=0.2)
        process.communicate()
    assert tree_figures(process.pid) is None


def test_pages_that_processes_share_count_in_parts() -> None:
    code = (
        "import mmap, os, sys\n"
        "shared = mmap.mmap(-1, 64 << 20)\n"
        "shared.write(b'x' * len(shared))\n"
        "pid = os.fork()\n"
        "pages = shared[::4096]\n"  # each process has read each page
        "print(flush=True)\n"
        "sys.stdin.read() if pid else __import__('signal').pause()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline(), process.stdout.readline()
        (child,) = psutil.Process(process.pid).children()
        held = [proportional_bytes(pid) for pid in (process.pid, child.pid)]
        assert sum(held) == pytest.approx(
            sum(psutil.Process(pid).memory_full_info().pss for pid in (process.pid, child.pid)),
            rel=0.1,
        )
        for each in held:
            assert 32 << 20 < each < 64 << 20
        child.kill()
        process.communicate()
    assert proportional_bytes(process.pid) == 0


def test_a_process_of_its_own_is_the_default() -> None:
    assert process_figures() is not None
    assert process_figures(os.getpid()) is not None


def test_threads_are_on_the_metrics_page() -> None:
    import shared.rpc.call_metrics  # noqa: F401  # registers it

    assert (REGISTRY.get_sample_value("process_threads") or 0) >= 1
