"""Serial executors keep their order, take turns and stop at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from vision_svc.streams.serial_executor import SerialExecutor

LONG = 10.0


def test_items_are_done_in_order_by_any_thread() -> None:
    done: list[int] = []
    all_done = threading.Event()

    def run(number: int) -> None:
        done.append(number)
        if number == 999:
            all_done.set()

    with ThreadPoolExecutor(4) as pool:
        executor = SerialExecutor(pool, run)
        for number in range(1000):
            executor.put(number)
        assert all_done.wait(LONG)
    assert done == list(range(1000))
    assert executor.idle


def test_one_item_of_an_executor_runs_at_a_time() -> None:
    inside, most, everything = 0, 0, threading.Semaphore(0)
    lock = threading.Lock()

    def run(_: int) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.001)
        with lock:
            inside -= 1
        everything.release()

    with ThreadPoolExecutor(4) as pool:
        executor = SerialExecutor(pool, run)
        for number in range(20):
            executor.put(number)
        for _ in range(20):
            assert everything.acquire(timeout=LONG)
    assert most == 1


def test_executors_take_turns() -> None:
    order: list[str] = []
    go = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(go.wait, LONG)
        executors = [SerialExecutor(pool, order.append) for _ in range(2)]
        for executor, name in zip(executors, "ab", strict=True):
            for _ in range(3):
                executor.put(name)
        last = SerialExecutor(pool, lambda event: event.set())
        go.set()
        for _ in range(4):  # each turn of the pool lets the others go on
            turned = threading.Event()
            last.put(turned)
            assert turned.wait(LONG)
    assert order == ["a", "b"] * 3


def test_a_closed_executor_finishes_what_runs_and_no_more() -> None:
    done: list[int] = []
    began, go = threading.Event(), threading.Event()

    def run(number: int) -> None:
        began.set()
        go.wait(LONG)
        done.append(number)

    with ThreadPoolExecutor(1) as pool:
        executor = SerialExecutor(pool, run)
        for number in range(3):
            executor.put(number)
        assert began.wait(LONG)
        executor.close()
        executor.put(3)
        go.set()
    assert done == [0]
    assert executor.idle
