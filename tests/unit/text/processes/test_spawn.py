"""Children of the front: their report, its errors, and their end."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from shared.errors import InternalError, InvalidModelError, OutOfMemoryError, ServiceError
from text_svc.processes import spawn as spawning
from text_svc.processes.spawn import Child, spawn
from text_svc.processes.specs import ChildSpec, WorkerReport


@asynccontextmanager
async def child(doing: str) -> AsyncIterator[Child]:
    scratch = Path(tempfile.mkdtemp())
    spec = ChildSpec(model_id=doing, scratch=scratch, log_level="INFO", log_style="text")
    made = await spawn("tests.support.reporting_child", spec, threads=1, environment={"RAM": "7"})
    try:
        yield made
    finally:
        await made.end()
        assert not psutil.pid_exists(made.pid)
        assert not await asyncio.to_thread(scratch.exists), "its scratch folder went with it"


async def report_of(doing: str, timeout: float = 60) -> WorkerReport:
    before = psutil.Process().num_fds()
    try:
        async with child(doing) as made:
            return await made.report(WorkerReport, f"testing {doing}", timeout)
    finally:
        assert psutil.Process().num_fds() == before, "the pipe is closed"


async def test_a_report_and_the_environment_arrive() -> None:
    report = await report_of("reports")
    assert (report.weights_bytes, report.vram_bytes) == (7, os.getpid())


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("INVALID_MODEL", InvalidModelError),
        ("OUT_OF_MEMORY", OutOfMemoryError),
        ("SOMETHING_ELSE", InternalError),
    ],
)
async def test_a_reported_error_is_raised_with_its_class(
    reason: str, kind: type[ServiceError]
) -> None:
    with pytest.raises(kind, match="a sentence") as caught:
        await report_of(reason)
    assert type(caught.value) is kind


async def test_a_child_that_ends_without_a_report() -> None:
    with pytest.raises(InternalError, match=r"the process testing dies ended: .*SIGKILL"):
        await report_of("dies")


async def test_a_report_has_a_limit() -> None:
    with pytest.raises(InternalError, match=r"its process reported over 1048576 bytes"):
        await report_of("floods")


async def test_a_child_that_cannot_start_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(spawning.sys, "executable", str(tmp_path / "none"))
    scratch = tmp_path / "scratch"
    spec = ChildSpec(model_id="reports", scratch=scratch, log_level="INFO", log_style="text")
    before = psutil.Process().num_fds()
    with pytest.raises(FileNotFoundError):
        await spawn("tests.support.reporting_child", spec, threads=1)
    await asyncio.sleep(0.2)  # the thread of its stderr ends
    assert psutil.Process().num_fds() == before
    assert not scratch.exists()


async def test_a_child_that_takes_too_long_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawning, "TERMINATE_SECONDS", 0.2)
    with pytest.raises(InternalError, match=r"testing hangs took longer than 0\.5 s"):
        await report_of("hangs", 0.5)
