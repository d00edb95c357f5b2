"""The lease: of several processes with the same state folder, one drives the replicas.

The others are standbys. A holder that ends gives the lease back; one that dies, or gives no sign of
life for `seconds`, loses it. Clocks of other machines are never compared: a standby counts, on its
own clock, how long it has seen no change; a holder counts from before its last sign of life.

A holder that was stopped and goes on looks at the folder before it acts. What it has on its way
already is refused by the replicas, which know the epoch of the next holder (`shared.rpc.epochs`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import Gauge

from model_mgmt_svc.lease_files import LeaseFiles, Seen
from shared.errors import ShuttingDownError

log = logging.getLogger(__name__)

T = TypeVar("T")

# Time between two looks of a standby.
LOOK_SECONDS = 0.25
# Signs of life in the time after which a holder loses the lease without them.
RENEWALS = 4
# Longest wait for a disk that hangs, before a holder goes on with what it knows.
DISK_SECONDS = 2.0

STANDBY = Gauge(
    "model_mgmt_standby", "1 while this process waits for another one's lease, 0 if it has it."
)
EPOCH = Gauge("model_mgmt_epoch", "The epoch of this process's lease; 0 without one.")


def since_boot() -> float:
    """Seconds that go on while the machine sleeps, where the system counts them."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Lease:
    """The lease on a state folder, for one process. For the event loop.

    Where the folder cannot be used, the process goes on without a lease, with epoch 0, and takes it
    once that is possible: a broken disk must not keep it from its work.

    Args:
        folder: the state folder.
        seconds: time without a sign of life after which a holder loses the lease.
        clock: seconds for a holder, `since_boot`.
        on_lost: called once when another process has taken over.

    Attributes:
        epoch: the number of the lease; 0 while there is none.
        lost: whether another process has taken over.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seconds: float = 10.0,
        clock: Callable[[], float] = since_boot,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.epoch = 0
        self.lost = False
        self._files = LeaseFiles(folder)
        self._folder = folder
        self._seconds = seconds
        self._clock = clock
        self._on_lost = on_lost
        self._sure_at = clock()
        # When the last sign of life has failed since the disk did; long ago if none has.
        self._failed_at = -math.inf
        self._disk_fails = ""
        # What a standby has seen last, for how long, and when it looked, on the monotonic clock.
        self._seen: Seen | None = None
        self._unchanged = 0.0
        self._looked_at = 0.0
        self._told = False
        self._changing = asyncio.Lock()
        # All that touches the folder, one after the other: a disk that hangs takes one thread.
        self._thread = ThreadPoolExecutor(1, "lease")

    async def take(self) -> bool:
        """Takes the lease if nobody holds it, or goes on without one; false for a standby.

        One that has seen a holder stays a standby while the folder cannot be used.
        """
        try:
            taken = await self._in_thread(self._take)
            self._disk_fails = ""
        except OSError as error:
            taken = not self._told
            self._cannot_use(error, "waiting" if self._told else "going on without")
        STANDBY.set(not taken)
        if not taken and not self._told:
            self._told = True
            holder = self._seen.holder if self._seen else "of an earlier version"
            log.info(
                "another model_mgmt_svc holds the lease: this one is a standby",
                extra={"folder": str(self._folder), "holder": holder},
            )
        return taken

    async def wait(self) -> None:
        """Takes the lease, however long that takes."""
        while not await self.take():
            await asyncio.sleep(LOOK_SECONDS)
        log.info("this standby has taken over", extra={"epoch": self.epoch})

    async def keep(self) -> None:
        """Gives signs of life until cancelled, or until the lease is lost."""
        while not self.lost:
            await asyncio.sleep(self._seconds / RENEWALS)
            await self._renew()

    async def check(self) -> None:
        """Returns if this process may act.

        Raises:
            ShuttingDownError: another one has taken over.
        """
        if self._is_unsure():  # it was stopped, or its disk hangs
            await self._renew(if_unsure=True)
        if self.lost:
            raise ShuttingDownError("another model_mgmt_svc has taken over: try again")

    def check_record(self) -> None:
        """Returns if this process may write into the folder. Blocks: call it in a thread.

        Raises:
            OSError: another one holds the lease, or the folder cannot be read.
        """
        if self.lost or not self._thread.submit(self._may_write).result():
            raise OSError(0, "another model_mgmt_svc holds the lease on the state folder")

    async def passed(self, epoch: int) -> None:
        """A replica has seen an epoch above this one's: takes a higher one, or finds out that it
        is lost.

        The former happens when the state folder was emptied or restored, so that epochs began anew.
        """
        async with self._changing:
            if self.lost or epoch < self.epoch:
                return
            try:
                async with asyncio.timeout(DISK_SECONDS):
                    taken = await self._in_thread(self._take_above, epoch)
            except (OSError, TimeoutError):
                taken = 0
            if not taken:
                self._lose()
                return
            log.warning(
                "replicas know a higher epoch: the state folder was emptied, or another "
                "model_mgmt_svc with another folder drives them",
                extra={"seen": epoch, "epoch": taken},
            )
            self._has(taken)

    async def give_back(self) -> None:
        """Lets the next process have the lease at once."""
        await self._in_thread(self._files.give_back, 0 if self.lost else self.epoch)

    def _is_unsure(self) -> bool:
        """Whether it is to look at the folder before it acts.

        Not again right after a look that the disk has not answered: all calls would wait in a line.
        """
        now = self._clock()
        return (
            bool(self.epoch)
            and not self.lost
            and now - self._sure_at >= self._seconds
            and now - self._failed_at >= self._seconds / RENEWALS
        )

    async def _renew(self, *, if_unsure: bool = False) -> None:
        async with self._changing:
            if self.lost or (if_unsure and not self._is_unsure()):
                return
            before = self._clock()
            try:
                async with asyncio.timeout(DISK_SECONDS):
                    if self.epoch:
                        held = await self._in_thread(self._files.renew, self.epoch)
                    else:
                        held = await self._in_thread(self._take)
            except (OSError, TimeoutError) as error:
                await self._still_held(error)
                self._failed_at = self._clock()
                return
            if not held:
                self._lose()
                return
            self._sure_at = before
            if self._disk_fails:
                log.info("the lease can be renewed again")
            self._disk_fails = ""

    async def _still_held(self, error: Exception) -> None:
        """After a sign of life that could not be given: looks at least whether it is lost."""
        self._cannot_use(error)
        if not self.epoch:
            return
        try:
            async with asyncio.timeout(DISK_SECONDS):
                if not await self._in_thread(self._files.holds, self.epoch):
                    self._lose()
        except (OSError, TimeoutError):
            pass  # nothing is known: the replicas refuse what another holder has passed

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _take(self) -> bool:
        """Takes the lease unless somebody holds it; blocks."""
        seen, busy = self._files.look()
        now = time.monotonic()
        if self._looked_at and seen == self._seen:
            # A standby that was stopped has not watched meanwhile.
            self._unchanged += min(now - self._looked_at, 2 * LOOK_SECONDS)
        else:
            self._unchanged = 0.0
        self._seen, self._looked_at = seen, now
        free = not busy if seen is None else seen.dead or (seen.ended and not busy)
        silent = seen is not None and self._unchanged >= self._seconds
        epoch = seen.epoch + 1 if seen else 1
        if (free or silent) and self._files.claim(epoch):
            self._has(epoch)
            return True
        self._files.unlock()
        return False

    def _take_above(self, epoch: int) -> int:
        """Exchanges the lease that is held for one with a higher epoch; 0 if it is not held."""
        if self.epoch and not self._files.holds(self.epoch):
            return 0
        return epoch + 1 if self._files.claim(epoch + 1) else 0

    def _may_write(self) -> bool:
        if self.epoch:
            return self._files.holds(self.epoch)
        seen, busy = self._files.look()
        self._files.unlock()
        return not busy and (seen is None or seen.ended or seen.dead)

    def _has(self, epoch: int) -> None:
        self.epoch, self._sure_at = epoch, self._clock()
        EPOCH.set(epoch)

    def _lose(self) -> None:
        self.lost = True
        STANDBY.set(1)
        log.error("another model_mgmt_svc has taken over: this one acts no more, and ends")
        self._on_lost()

    def _cannot_use(self, error: Exception, then: str = "going on without") -> None:
        reason = getattr(error, "strerror", None) or "the disk does not answer in time"
        if reason != self._disk_fails:
            log.warning(
                f"the state folder cannot be used for the lease: {then}",
                extra={"folder": str(self._folder), "error": reason},
            )
        self._disk_fails = reason
