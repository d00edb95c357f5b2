"""Many threads that load, unload and ask the same few models at once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.chaos.callers import RIGHT, Calls, make, open_channel
from tests.chaos.log import Log
from tests.chaos.world import World

THREADS = 32
CALLS = 200
ACTIONS = {"load": 10, "embed": 88, "unload": 2}
"""How often each, of a hundred: most calls of an application are for answers."""


def storm(
    world: World, log: Log, calls: Calls, seed: int, names: Sequence[str], seconds: float
) -> int:
    """`THREADS` threads make up to `CALLS` calls each about some models; returns how many.

    Args:
        seed: decides which calls.
        names: of the models.
        seconds: after which no thread begins another call; a slow machine gets to fewer of them.
    """
    address = world.stack.addresses["envoy"]
    give_up = time.monotonic() + seconds
    made = [0] * THREADS
    begin = threading.Barrier(THREADS)

    def run(thread: int) -> None:
        chance = random.Random(f"{seed} {len(names)} {thread}")
        with open_channel(address) as channel:
            begin.wait()
            for _ in range(CALLS):
                if time.monotonic() > give_up:
                    return
                (action,) = chance.choices([*ACTIONS], [*ACTIONS.values()])
                name = chance.choice(names)
                went = make(log, f"storm {action}", channel, calls.guest(action, name))
                if action == "embed" and went != RIGHT:  # as applications do
                    make(log, "storm load", channel, calls.guest("load", name))
                made[thread] += 1

    with ThreadPoolExecutor(THREADS) as pool:
        for each in [pool.submit(run, thread) for thread in range(THREADS)]:
            each.result()
    return sum(made)
