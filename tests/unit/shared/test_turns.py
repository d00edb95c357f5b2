"""What waits is served so that callers take turns."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections import Counter
from collections.abc import Callable
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
    assert not turns._callers
    assert not len(turns._served)


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


def test_a_caller_gets_turns_by_its_weight() -> None:
    turns: Turns[str] = Turns({"x": 2, "z": 0.5})
    for number in range(7):
        for name in "xyz":
            turns.add(name, f"{name}{number}")
    running = [turns.start() for _ in range(7)]
    assert Counter(started[0] for started in running if started) == {"x": 4, "y": 2, "z": 1}


def test_cost_decides_between_those_that_have_as_many_running() -> None:
    turns: Turns[str] = Turns()
    for number in range(10):
        turns.add("long", f"long{number}")
        turns.add("short", f"short{number}")
    served: Counter[str] = Counter()
    for _ in range(8):  # one at a time
        started = turns.start()
        assert started is not None
        turns.ended(started[0], 300 if started[0] == "long" else 100)
        served[started[0]] += 1
    assert served == {"short": 6, "long": 2}


def test_nobody_saves_up_and_leaving_gains_nothing() -> None:
    turns: Turns[str] = Turns()
    for number in range(3):
        turns.add("x", f"x{number}")
    for _ in range(2):
        turns.start()
        turns.ended("x", 100)
    turns.add("y", "y0")  # begins where x is, not with 200 to catch up
    turns.add("y", "y1")
    assert turns.start() == ("y", "y0")
    turns.ended("y", 50)
    assert turns.start() == ("x", "x2")
    turns.ended("x", 100)  # x has left, with 50 more than y
    turns.add("x", "x3")
    assert order(turns) == ["y1", "x3"]
    for name in "xy":
        turns.ended(name)
    assert not turns._served._left
    assert not turns._served._served


def test_who_has_left_is_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.turns.MAX_REMEMBERED", 10)
    turns: Turns[str] = Turns()
    turns.add("stays", "0")
    turns.add("stays", "1")
    turns.start()
    for number in range(100):
        turns.add(f"c{number}", "item")
        turns.start()
        turns.ended(f"c{number}", 5)
    assert len(turns._served._left) <= 10


def test_a_priority_counts_among_a_caller_s_own_alone() -> None:
    turns: Turns[str] = Turns()
    turns.add("x", "x0")
    turns.add("x", "x1", priority=5)
    turns.add("x", "x2", priority=-1)
    turns.add("x", "x3", priority=5)
    turns.add("y", "y0", priority=-100)
    assert order(turns) == ["x1", "y0", "x3", "x0", "x2"]


def test_who_waits_and_runs_is_told() -> None:
    turns: Turns[str] = Turns()
    turns.add("x", "x0")
    turns.add("x", "x1")
    turns.add("y", "y0")
    assert turns.callers == 2
    turns.start()
    assert (turns.running("x"), turns.running("y")) == (1, 0)
    turns.start()
    assert turns.callers == 1


def test_cancelled_work_leaves_at_once() -> None:
    threads, hold = TurnThreads(1, "test"), threading.Event()
    threads.submit("x", hold.wait)
    waiting = [threads.submit("y", lambda: None) for _ in range(3)]
    for future in waiting:
        assert future.cancel()
    assert threads.callers == 0
    hold.set()
    assert threads.submit("y", lambda: 3).result(60) == 3
    threads.shutdown()


def fails() -> None:
    raise ValueError


@pytest.mark.parametrize("does", [lambda: None, fails], ids=["done", "failed"])
def test_nothing_holds_the_work_of_a_call_that_has_ended(does: Callable[[], None]) -> None:
    class Work:
        def __call__(self) -> None:
            does()

    threads, work = TurnThreads(1, "test"), Work()
    held = weakref.ref(work)
    gc.disable()
    try:
        future = threads.submit("x", work)
        del work
        threads.shutdown()
        with contextlib.suppress(ValueError):
            future.result()
        del future
        assert held() is None
    finally:
        gc.enable()
