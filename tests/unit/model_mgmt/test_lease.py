"""Of several processes with one state folder, one acts; `LeaseFiles` stands for another process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from model_mgmt_svc import lease as lease_module
from model_mgmt_svc.desired import DesiredModel, DesiredModels
from model_mgmt_svc.lease import Lease
from model_mgmt_svc.lease_files import LeaseFiles
from shared.errors import ShuttingDownError
from shared.model_ids import ModelId
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "LOOK_SECONDS", 0.02)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system without locks."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_the_second_waits_for_as_long_as_the_first_holds_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Lease(tmp_path, seconds=0.2), Lease(tmp_path, seconds=0.2)
    caplog.set_level("INFO")
    assert await first.take()
    for _ in range(50):  # as many looks as ten times that time has
        await first._renew()
        second._looked_at -= 1000
        assert not await second.take()
    assert not first.lost
    await first.give_back()
    await asyncio.wait_for(second.wait(), 60)
    assert (first.epoch, second.epoch) == (1, 2)
    told = [record for record in caplog.records if "is a standby" in record.getMessage()]
    assert len(told) == 1
    assert names_in(tmp_path) == ["lease-2.json"]


async def test_the_lock_tells_at_once_that_the_holder_has_died(tmp_path: Path) -> None:
    first, second = Lease(tmp_path, seconds=600), Lease(tmp_path, seconds=600)
    assert await first.take()
    assert not await second.take()
    first._files.unlock()  # as the kernel does for a process that has ended
    assert await second.take()
    assert second.epoch == 2


async def test_a_free_lock_of_another_machine_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Lease(tmp_path, seconds=600), Lease(tmp_path, seconds=600)
    monkeypatch.setattr("model_mgmt_svc.lease_files._machine", lambda: "another one")
    assert await first.take()
    first._files.unlock()  # locks do not reach other machines
    monkeypatch.undo()
    assert not await second.take()


async def test_without_locks_a_holder_that_died_loses_it_in_time(
    tmp_path: Path, no_locks: None
) -> None:
    first, second = Lease(tmp_path, seconds=0.3), Lease(tmp_path, seconds=0.3)
    assert await first.take()  # and gives no signs of life
    start = asyncio.get_running_loop().time()
    await asyncio.wait_for(second.wait(), 60)
    assert asyncio.get_running_loop().time() - start >= 0.3
    assert second.epoch == 2


async def test_without_locks_a_clean_end_is_seen_at_once(tmp_path: Path, no_locks: None) -> None:
    first, second = Lease(tmp_path, seconds=600), Lease(tmp_path, seconds=600)
    assert await first.take()
    assert not await second.take()
    await first.give_back()
    assert await second.take()


async def test_of_many_standbys_one_takes_over(tmp_path: Path, no_locks: None) -> None:
    first = Lease(tmp_path, seconds=0.3)
    assert await first.take()
    others = [Lease(tmp_path, seconds=0.3) for _ in range(8)]
    waits = [asyncio.create_task(other.wait()) for other in others]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    (winner,) = [other for other in others if other.epoch]
    assert winner.epoch == 2
    async with kept(winner):
        await asyncio.sleep(0)
        assert sum(wait.done() for wait in waits) == 1
    for wait in waits:
        wait.cancel()


@contextlib.asynccontextmanager
async def kept(lease: Lease) -> AsyncIterator[None]:
    keeping = asyncio.create_task(lease.keep())
    yield
    keeping.cancel()


async def test_a_holder_that_was_stopped_notices_before_it_acts(
    tmp_path: Path, no_locks: None
) -> None:
    now = [0.0]
    lost: list[str] = []
    first = Lease(tmp_path, seconds=0.3, clock=lambda: now[0], on_lost=lambda: lost.append("first"))
    second = Lease(tmp_path, seconds=0.3)
    assert await first.take()
    await first.check()
    await asyncio.wait_for(second.wait(), 60)
    now[0] = 0.3  # as long as that it was stopped
    with pytest.raises(ShuttingDownError, match="another model_mgmt_svc has taken over"):
        await first.check()
    assert lost == ["first"]
    with pytest.raises(OSError, match="holds the lease"):
        await asyncio.to_thread(first.check_record)
    await first.give_back()  # of what it no longer has
    await second.check()
    assert not second.lost


async def test_a_holder_whose_clock_has_not_gone_on_is_told_by_its_next_sign_of_life(
    tmp_path: Path, no_locks: None
) -> None:
    first, second = Lease(tmp_path, seconds=0.3, clock=lambda: 0.0), Lease(tmp_path, seconds=0.3)
    assert await first.take()
    await asyncio.wait_for(second.wait(), 60)
    await asyncio.wait_for(first.keep(), 60)
    assert first.lost


async def test_a_standby_that_was_stopped_does_not_count_that_time(
    tmp_path: Path, no_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Lease(tmp_path, seconds=60), Lease(tmp_path, seconds=60)
    assert await first.take()
    assert not await second.take()
    second._looked_at -= 1000
    assert not await second.take()


async def test_a_number_that_was_used_and_removed_is_not_taken_again(tmp_path: Path) -> None:
    slow, fast = LeaseFiles(tmp_path), LeaseFiles(tmp_path)
    for epoch in (1, 2, 3):
        assert fast.claim(epoch)
    assert not slow.claim(2)
    assert not slow.claim(3)
    assert fast.holds(3)
    assert names_in(tmp_path) == ["lease-3.json"]


async def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("os.link", refuse)
    first, second = LeaseFiles(tmp_path), LeaseFiles(tmp_path)
    assert first.claim(1)
    assert not second.claim(1)
    assert first.renew(1)
    assert not second.renew(1)


async def test_files_that_somebody_removes_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    first, second = Lease(folder, seconds=600), Lease(folder, seconds=600)
    assert await first.take()
    (folder / "lease-1.json").unlink()
    folder.rmdir()
    await first._renew()
    assert (folder / "lease-1.json").exists()
    assert not first.lost
    assert not await second.take()


async def test_a_folder_that_another_process_found_empty(tmp_path: Path, no_locks: None) -> None:
    first, second = Lease(tmp_path, seconds=600), Lease(tmp_path, seconds=600)
    for _ in range(3):
        assert await first.take()
        await first.give_back()
    assert await first.take()
    (tmp_path / f"lease-{first.epoch}.json").unlink()
    assert await second.take()
    assert second.epoch < first.epoch
    await first._renew()
    assert first.lost


async def test_replicas_that_know_a_higher_epoch(tmp_path: Path, no_locks: None) -> None:
    lease = Lease(tmp_path, seconds=0.3)
    assert await lease.take()
    await lease.passed(41)  # the folder was emptied since
    assert (lease.epoch, lease.lost) == (42, False)
    other = Lease(tmp_path, seconds=0.3)
    await asyncio.wait_for(other.wait(), 60)
    assert other.epoch == 43
    await lease.passed(43)
    assert lease.lost


def no_folder(folder: Path) -> None:
    folder.symlink_to(folder.with_name("elsewhere"))


def no_folder_but_a_file(folder: Path) -> None:
    folder.write_bytes(b"")


@pytest.mark.parametrize("make", [no_folder, no_folder_but_a_file])
async def test_a_folder_that_cannot_be_used(make: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "state"
    make(folder)
    lease = Lease(folder, seconds=0.1)
    assert await lease.take()
    assert lease.epoch == 0
    await lease.check()
    folder.unlink()
    folder.mkdir()
    async with kept(lease):
        await until(lambda: lease.epoch == 1)
    assert not lease.lost


@pytest.mark.parametrize("content", [b"", b"[]", b"{" * 5000, b"\xff", b'{"ended": 3, "pid": []}'])
async def test_what_lies_in_the_place_of_a_lease_counts_as_a_silent_holder(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "lease-7.json").write_bytes(content)
    lease = Lease(tmp_path, seconds=0.1)
    await asyncio.wait_for(lease.wait(), 60)
    assert lease.epoch == 8


async def test_a_folder_in_the_place_of_a_lease_counts_as_a_silent_holder(tmp_path: Path) -> None:
    (tmp_path / "lease-7.json").mkdir()
    lease = Lease(tmp_path, seconds=0.1)
    await asyncio.wait_for(lease.wait(), 60)
    assert lease.epoch == 8


async def test_a_standby_stays_one_while_the_folder_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, standby = LeaseFiles(tmp_path), Lease(tmp_path)
    assert holder.claim(1)
    assert not await standby.take()
    iterdir = Path.iterdir

    def fails(_: Path) -> Iterator[Path]:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "iterdir", fails)
    for _ in range(3):
        assert not await standby.take()
    monkeypatch.setattr(Path, "iterdir", iterdir)
    holder.give_back(1)
    assert await standby.take()
    assert standby.epoch == 2


async def test_calls_do_not_stand_in_a_line_before_a_disk_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    looks = []
    lease = Lease(tmp_path, clock=lambda: now)
    assert await lease.take()
    in_thread = lease._in_thread

    async def hangs(work: Callable[..., object], *arguments: object) -> object:
        looks.append(work)
        raise TimeoutError

    monkeypatch.setattr(lease, "_in_thread", hangs)
    now = 1000.0
    await asyncio.gather(*(lease.check() for _ in range(50)))
    await lease.check()
    assert looks == [lease._files.renew, lease._files.holds]
    assert not lease.lost
    # It looks again before it acts after another while.
    monkeypatch.setattr(lease, "_in_thread", in_thread)
    assert LeaseFiles(tmp_path).claim(2)
    now = 1003.0
    with pytest.raises(ShuttingDownError):
        await lease.check()


async def test_a_disk_that_is_full_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(tmp_path, seconds=0.1)
    assert await lease.take()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    async with kept(lease):
        await asyncio.sleep(0.3)
        await lease.check()
    assert not lease.lost


async def test_the_record_of_a_holder_stays_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was stopped in the middle of a write replaces it when it goes on."""
    monkeypatch.setattr("model_mgmt_svc.desired._CHECK_SECONDS", 0.02)
    one = DesiredModel(ModelId("org/one"), "text-generation")
    record = tmp_path / "desired_models.json"
    lease = Lease(tmp_path)
    assert await lease.take()
    (tmp_path / "desired_models.1.1.tmp").write_text('{"models": []}')
    async with DesiredModels(record, lease) as desired:
        assert names_in(tmp_path) == ["desired_models.json", "lease-1.json"]
        await desired.put(one)
        own = record.read_text()
        other = tmp_path / "other"
        other.write_text('{"models": []}')
        other.replace(record)
        await until(lambda: record.read_text() == own)


async def test_a_record_is_not_written_without_the_lease(tmp_path: Path) -> None:
    lease = Lease(tmp_path, seconds=0.1)
    assert await lease.take()
    async with DesiredModels(tmp_path / "desired_models.json", lease) as desired:
        assert LeaseFiles(tmp_path).claim(2)
        await desired.put(DesiredModel(ModelId("org/one"), "text-generation"))
        assert desired.unsaved == "another model_mgmt_svc holds the lease on the state folder"
        await lease._renew()
        assert lease.lost
    assert json.loads((tmp_path / "desired_models.json").read_text()) == {
        "models": [],
        "complete": False,
    }
