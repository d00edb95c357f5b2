"""A run: a stack under steady calls, faults from a schedule, and a verdict."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.chaos import leftovers
from tests.chaos.callers import RIGHT, Caller, Calls, make, model_states, open_channel, steady
from tests.chaos.checker import Verdict, judge
from tests.chaos.clock import FairClock
from tests.chaos.faults import Faults
from tests.chaos.log import Log
from tests.chaos.models import GUEST, ON_CALL, ORGANISATION, WISHES, Wish
from tests.chaos.schedule import Fault
from tests.chaos.world import World, clock_library, world
from tests.support.stack import SERVICES, wait_for

# The promise: so long after the last fault, all that is desired answers again.
WELL_SECONDS = 30.0
# On a machine that needs this long for the first load of all models the promise is as it is; on a
# slower one it is stretched by as much. Only the share of the time counts that a busy machine gives
# a process, here and there.
USUAL_LOAD_SECONDS = 10.0
LOAD_SECONDS = 600.0
STORM_MODELS = (1, 4)
# Calls load models in every other run: they do without, or wait for memory that others use.
CALLS_LOAD = {"AUTO_LOAD": f"{ORGANISATION}/{ON_CALL}", "AUTO_LOAD_WAIT_SECONDS": "5"}


def run(
    faults: Iterable[Fault],
    *,
    seed: int,
    seconds: float,
    log_file: Path,
    storm_seconds: float = 0.0,
) -> Verdict:
    """Causes faults for some time, and judges what came of it.

    Args:
        faults: in their order.
        seed: of the storms; with an even one, calls load models.
        seconds: after which no other fault is caused; the run ends when all is well.
        log_file: where all is written down; the processes' own logs go beside it.
        storm_seconds: of each of the storms of loads, unloads and calls; 0 for none.
    """
    log = Log(log_file)
    calls_load = seed % 2 == 0
    settings = CALLS_LOAD if calls_load else {}
    with world(settings) as running, _logs_kept(running, log_file.with_suffix(".logs")):
        answers = running.models.answers()
        running.stack.wait_serving(SERVICES)
        calls = Calls(running.models, answers)
        clock = FairClock()
        bound = WELL_SECONDS * _slowness(running, log, calls, clock)
        log.add("start", seed=seed, bound=round(bound, 1), time=time.time(), calls_load=calls_load)
        services = leftovers.Services(running)
        address = running.stack.addresses["envoy"]
        causes = Faults(running, log, calls, clock, bound)
        callers = [Caller(log, address, each) for each in steady(calls).values()]
        try:
            causes.wait_until_well(0, "the start")
            possible = filter(partial(_is_possible, calls_load=calls_load), faults)
            _cause(causes, possible, seconds)
            for models in STORM_MODELS if storm_seconds else ():
                causes.storm(models, seed, storm_seconds)
            causes.wait_until_well(0, "everything")
        finally:
            _stop(callers)
            causes.close()
            clock.stop()
        with open_channel(address) as channel:
            if GUEST in model_states(channel):
                make(log, "guest unload", channel, calls.guest("unload"))
        leftovers.look(running, log, services, bound)
        running.stack.stop()
        for each in running.scratch.iterdir():
            log.add("leftover", thing=f"file {each.name} of a stack that was stopped")
    verdict = judge(log.events())
    log.close()
    return verdict


@contextlib.contextmanager
def _logs_kept(running: World, folder: Path) -> Iterator[None]:
    """Copies what the processes have logged, also after a run that fails."""
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(running.stack.logs, folder)


def _is_possible(fault: Fault, *, calls_load: bool) -> bool:
    if fault.moment == "loading for calls":
        return calls_load
    return fault.kind != "clock jumps" or clock_library() is not None


def _slowness(running: World, log: Log, calls: Calls, clock: FairClock) -> float:
    """How slow this machine is; loads the models that stay."""
    began = clock.now()

    def load(wish: Wish) -> None:
        with open_channel(running.stack.addresses["envoy"]) as channel:
            # The longest wait of a call may be too short for the first load on a busy machine.
            wait_for(
                f"the first load of {wish.model_id}",
                lambda: make(log, "first load", channel, calls.load(wish)) == RIGHT,
                LOAD_SECONDS,
            )

    with ThreadPoolExecutor(len(WISHES)) as pool:
        list(pool.map(load, WISHES))
    return max(1.0, (clock.now() - began) / USUAL_LOAD_SECONDS)


def _cause(causes: Faults, faults: Iterable[Fault], seconds: float) -> None:
    give_up = time.monotonic() + seconds
    for fault, after in itertools.pairwise(faults):
        causes.cause(fault, wait=not after.together)
        if time.monotonic() > give_up:
            return


def _stop(callers: Sequence[Caller]) -> None:
    for caller in callers:
        caller.tell_to_stop()
    for caller in callers:
        caller.join()
