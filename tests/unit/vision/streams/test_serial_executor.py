"""Lanes keep their order, take turns and stop at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vision_svc.streams.serial_executor import (
    Lane,
    name_thread,
)

LONG = 10.0


def test_items_are_done_in_order_by_any_thread() -> None:
    done: list[int] = []
    all_done = threading.Event()

    def run(number: int) -> None:
        done.append(number)
        if number == 999:
            all_done.set()

    with ThreadPoolExecutor(4) as pool:
        lane = Lane(pool, run)
        for number in range(1000):
            lane.put(number)
        assert all_done.wait(LONG)
    assert done == list(range(1000))
    assert lane.idle


def test_one_item_of_a_lane_runs_at_a_time() -> None:
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
        lane = Lane(pool, run)
        for number in range(20):
            lane.put(number)
        for _ in range(20):
            assert everything.acquire(timeout=LONG)
    assert most == 1


def test_lanes_take_turns() -> None:
    order: list[str] = []
    go = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(go.wait, LONG)
        lanes = [Lane(pool, order.append) for _ in range(2)]
        for lane, name in zip(lanes, "ab", strict=True):
            for _ in range(3):
                lane.put(name)
        last = Lane(pool, lambda event: event.set())
        go.set()
        for _ in range(4):  # each turn of the pool lets the others go on
            turned = threading.Event()
            last.put(turned)
            assert turned.wait(LONG)
    assert order == ["a", "b"] * 3


def test_a_closed_lane_finishes_what_runs_and_no_more() -> None:
    done: list[int] = []
    began, go = threading.Event(), threading.Event()

    def run(number: int) -> None:
        began.set()
        go.wait(LONG)
        done.append(number)

    with ThreadPoolExecutor(1) as pool:
        lane = Lane(pool, run)
        for number in range(3):
            lane.put(number)
        assert began.wait(LONG)
        lane.close()
        lane.put(3)
        go.set()
    assert done == [0]
    assert lane.idle


def test_the_name_of_a_thread_is_cut_to_what_fits() -> None:
    with ThreadPoolExecutor(
        1, initializer=name_thread, initargs=("a-name-of-many-letters",)
    ) as pool:
        path = pool.submit(
            lambda: Path(f"/proc/self/task/{threading.get_native_id()}/comm")
        ).result()
        assert path.read_text().strip() == "a-name-of-many-"
