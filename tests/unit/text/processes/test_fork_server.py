"""Children that the fork server makes: they are the front's own, as if it had started them."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from shared.errors import InternalError
from tests.support.stack import ROOT
from tests.support.waiting import until
from text_svc.processes import fork_server as fork_server_module
from text_svc.processes import forking
from text_svc.processes.fork_server import ForkServer
from text_svc.processes.spawn import Child, library_environment, spawn
from text_svc.processes.specs import ChildSpec, WorkerReport

# A front that starts a child which hangs, and tells its process id and that of the fork server.
FRONT = """
import asyncio, sys
from pathlib import Path
import psutil
from text_svc.processes.fork_server import ForkServer
from text_svc.processes.spawn import library_environment, spawn
from tests.support.sandboxed_child import TrialReport, TrialSpec

async def front():
    folder = Path(sys.argv[1])
    forks = ForkServer(library_environment(1))
    await forks.start(folder / "forks")
    spec = TrialSpec(model_id="waits", scratch=folder / "scratch", log_level="INFO",
                     log_style="text", own=folder, other=folder, wait=True)
    child = await spawn("tests.support.sandboxed_child", spec, threads=1, forks=forks)
    await child.report(TrialReport, "waiting", 60)
    print(child.pid, *(each.pid for each in psutil.Process().children()), flush=True)
    await asyncio.sleep(60)

asyncio.run(front())
"""


@pytest.fixture
def born() -> Callable[[], list[psutil.Process]]:
    """The children since the test began; other tests may have left some."""
    before = {each.pid for each in psutil.Process().children()}
    return lambda: [each for each in psutil.Process().children() if each.pid not in before]


@asynccontextmanager
async def fork_server() -> AsyncIterator[ForkServer]:
    with tempfile.TemporaryDirectory() as folder:
        async with aclosing(ForkServer(library_environment(1))) as forks:
            await forks.start(Path(folder, "forks"))
            yield forks


@asynccontextmanager
async def child(doing: str, forks: ForkServer) -> AsyncIterator[Child]:
    scratch = Path(tempfile.mkdtemp())
    spec = ChildSpec(model_id=doing, scratch=scratch, log_level="INFO", log_style="text")
    made = await spawn(
        "tests.support.reporting_child", spec, threads=3, environment={"RAM": "7"}, forks=forks
    )
    try:
        yield made
    finally:
        await made.end()
        assert not psutil.pid_exists(made.pid)
        assert not await asyncio.to_thread(scratch.exists)


async def test_a_child_is_one_of_this_process_and_ends_as_others_do() -> None:
    async with fork_server() as forks:
        async with child("reports", forks) as made:
            before = psutil.Process().num_fds()
            report = await made.report(WorkerReport, "testing", 60)
            assert (report.weights_bytes, report.vram_bytes) == (7, os.getpid())
            process = psutil.Process(made.pid)
            assert process.ppid() == os.getpid()
            words = [word for word in process.cmdline() if word]
            assert words[:3] == [sys.executable, "-m", "tests.support.reporting_child"]
            assert '"reports"' in words[3], "the model that it works on"
            assert psutil.Process().num_fds() == before - 1, "the pipe of the report is closed"
        assert await made.wait() == "signal SIGTERM"
        async with child("crashes", forks) as made:
            with pytest.raises(InternalError, match="ended: signal SIGSEGV"):
                await made.report(WorkerReport, "testing", 60)
        async with child("says bad_alloc", forks) as made:
            assert await made.out_of_memory(), "its stderr has said so"
        assert forks.served == 3


async def test_a_fork_server_that_is_killed_takes_no_child_with_it_and_starts_again(
    born: Callable[[], list[psutil.Process]],
) -> None:
    async with fork_server() as forks, child("hangs", forks) as before:
        (server,) = (each for each in born() if each.pid != before.pid)
        server.kill()
        await until(lambda: not psutil.pid_exists(server.pid))
        async with child("reports", forks) as made:  # by an interpreter of its own
            await made.report(WorkerReport, "testing", 60)
        assert forks.served == 1
        async with child("reports", forks) as made:
            await made.report(WorkerReport, "testing", 60)
        assert forks.served == 2
        assert psutil.pid_exists(before.pid)


async def test_a_fork_server_that_hangs_is_ended(
    monkeypatch: pytest.MonkeyPatch, born: Callable[[], list[psutil.Process]]
) -> None:
    async with fork_server() as forks:
        async with child("reports", forks) as made:
            await made.report(WorkerReport, "testing", 60)
        monkeypatch.setattr(fork_server_module, "FORK_SECONDS", 0.1)
        (server,) = born()
        server.suspend()
        async with child("reports", forks) as made:
            await made.report(WorkerReport, "testing", 60)
        assert not psutil.pid_exists(server.pid)
        assert forks.served == 1


async def test_a_child_that_cannot_be_watched_is_ended(
    monkeypatch: pytest.MonkeyPatch, born: Callable[[], list[psutil.Process]]
) -> None:
    def no_descriptor(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with fork_server() as forks:
        monkeypatch.setattr(os, "pidfd_open", no_descriptor)
        with pytest.raises(OSError, match="Too many open files"):
            async with child("hangs", forks):
                pass
        assert len(born()) == 1, "the fork server alone"


async def test_a_system_where_it_cannot_fork_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "supported", lambda: False)
    async with fork_server() as forks, child("reports", forks) as made:
        assert (await made.report(WorkerReport, "testing", 60)).weights_bytes == 7
        assert forks.served == 0


async def test_a_caller_that_is_cancelled_leaves_no_child(
    tmp_path: Path, born: Callable[[], list[psutil.Process]]
) -> None:
    spec = ChildSpec(model_id="hangs", scratch=tmp_path, log_level="INFO", log_style="text")
    reading, writing = os.pipe()
    async with fork_server() as forks:
        command = ("tests.support.reporting_child", spec.model_dump_json(), dict(os.environ))
        forking = asyncio.create_task(forks.fork(*command, writing, 2))
        await asyncio.sleep(0)  # it has begun
        forking.cancel()
        await asyncio.wait({forking})
        os.close(writing)
        assert forking.cancelled()
        await until(lambda: forks.served == 1)
        await until(lambda: len(born()) == 1)
        assert os.read(reading, 1) == b"", "nobody has the pipe of the report any more"
    os.close(reading)


def test_children_and_fork_server_end_with_a_front_that_is_killed(tmp_path: Path) -> None:
    command = (sys.executable, "-c", FRONT, str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as front:
        assert front.stdout is not None
        started = [psutil.Process(int(pid)) for pid in front.stdout.readline().split()]
        assert len(set(started)) == 2
        front.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive
