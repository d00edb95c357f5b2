"""What waits is served so that callers take turns."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from shared.turns import Turns, TurnThreads


def order(turns: Turns[str]) -> list[str]:
    return [started[1] for _ in range(len(turns)) if (started := turns.start())]


def test_one_caller_is_served_in_order() -> None:
    turns: Turns[str] = Turns()
    for name in "abc":
        turns.add("x", name)
    assert turns.first() == "a"
    assert order(turns) == ["a", "b", "c"]
    assert turns.first() is None
    assert turns.start() is None


def test_the_caller_with_the_fewest_running_is_next() -> None:
    turns: Turns[str] = Turns()
    for number in range(4):
        turns.add("x", f"x{number}")
    assert [turns.start() for _ in range(2)] == [("x", "x0"), ("x", "x1")]
    for number in range(3):
        turns.add("y", f"y{number}")
    assert order(turns) == ["y0", "y1", "x2", "y2", "x3"]


def test_what_has_ended_counts_no_more() -> None:
    turns: Turns[str] = Turns()
    for name in ("x0", "x1"):
        turns.add("x", name)
    turns.start()
    turns.add("y", "y0")
    turns.ended("x")
    assert order(turns) == ["y0", "x1"], "among equals, whoever has waited longest for a turn"
    for name in "xy":
        turns.ended(name)
    assert not turns._running
    assert not turns._last_start


def test_what_is_taken_out_does_not_wait() -> None:
    turns: Turns[str] = Turns()
    turns.add("x", "x0")
    assert turns.remove("x", "x0")
    assert not turns.remove("x", "x0")
    assert len(turns) == 0


def test_threads_serve_callers_in_turns() -> None:
    threads, hold, done = TurnThreads(1, "test"), threading.Event(), list[str]()
    threads.submit("x", hold.wait)
    futures: list[Future[None]] = [threads.submit("x", lambda: done.append("x")) for _ in range(3)]
    futures.append(threads.submit("y", lambda: done.append("y")))
    failing = threads.submit("z", lambda: 1 // 0)
    assert futures[2].cancel()
    hold.set()
    with pytest.raises(ZeroDivisionError):
        failing.result(60)
    threads.shutdown()
    assert done[0] == "y"
    assert done.count("x") == 2
