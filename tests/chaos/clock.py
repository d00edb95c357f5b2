"""Time as far as a busy machine lets processes run."""

from __future__ import annotations

import hashlib
import threading
import time

# Work whose CPU time is compared with the time that it takes: long enough that others get their
# turns meanwhile, and with Python's lock released.
_WORK = bytes(32 << 20)
PERIOD_SECONDS = 1.0


class FairClock:
    """Counts the seconds that a process gets of the machine's time; all of them if cores are free.

    Where others keep the cores busy, whatever recovers waits for its turns as much as this does.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fair clock", daemon=True)
        self._thread.start()

    def now(self) -> float:
        """Seconds so far; behind by a second or so."""
        return self._seconds

    def stop(self) -> None:
        """It counts no more."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            share = share_of_a_core()
            self._stopped.wait(PERIOD_SECONDS)
            self._seconds += share * (time.monotonic() - began)


def share_of_a_core() -> float:
    """The share of its time for which work that never waits has a core, from 0 to 1."""
    began, cpu = time.monotonic(), time.thread_time()
    hashlib.sha256(_WORK)
    return min(1.0, (time.thread_time() - cpu) / (time.monotonic() - began))
