"""Threads that do not come to the end of their work."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref

import pytest

from vision_svc.watched_pool import WatchedPool


def hung() -> Exception:
    return TimeoutError("it hangs")


def test_only_what_has_been_seen_too_often_fails() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go_on.wait()

    with WatchedPool(2, "test") as pool:
        waits = pool.submit(wait)
        begun.wait()
        assert [pool.look(3, hung) for _ in range(2)] == [0, 0]
        assert pool.submit(lambda: 7).result() == 7
        assert pool.look(3, hung) == 1
        with pytest.raises(TimeoutError, match="it hangs"):
            waits.result()
        assert pool.look(3, hung) == 0  # once is enough
        go_on.set()


def test_what_waits_for_a_thread_is_not_looked_at() -> None:
    go_on = threading.Event()
    with WatchedPool(1, "test") as pool:
        first = pool.submit(go_on.wait)
        second = pool.submit(lambda: 7)
        pool.look(2, hung)
        go_on.set()
        assert second.result() == 7
        assert first.result()
        assert pool.look(1, hung) == 0


def test_nothing_holds_work_that_has_failed() -> None:
    class Work:
        def __call__(self) -> None:
            raise ValueError

    work = Work()
    held = weakref.ref(work)
    gc.disable()
    try:
        with WatchedPool(1, "test") as pool:
            future = pool.submit(work)
            del work
            with contextlib.suppress(ValueError):
                future.result()
            del future
        assert held() is None
    finally:
        gc.enable()
