"""Causes faults in a running stack, and waits until it has recovered from them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ClassVar

import grpc
import psutil

from ml import model_management_pb2 as models_pb
from ml import transformers_pb2 as text_pb
from ml import transformers_pb2_grpc as text_grpc
from tests.chaos.callers import CALL_SECONDS, NEEDED, RIGHT, Calls, make, model_states, open_channel
from tests.chaos.clock import FairClock
from tests.chaos.log import Log
from tests.chaos.models import CHAT, LONG_TOKENS, ON_CALL, QUESTION, TEXTS, WISHES
from tests.chaos.provider import Behaviour, held
from tests.chaos.schedule import Fault
from tests.chaos.storm import storm
from tests.chaos.world import World
from tests.support.stack import wait_for

READY, UNLOADING = models_pb.MODEL_STATE_READY, models_pb.MODEL_STATE_UNLOADING
LEAVES = (UNLOADING, models_pb.MODEL_STATE_EVICTED)
# For a moment to come that a fault is for; nothing is measured.
MOMENT_SECONDS = 600.0
LOOK_SECONDS = 0.4
# The moments for which a visiting model may have been converted before.
_AFTER_CONVERSION = ("loading", "loading for calls", "unloading", "evicting")
BALLAST_BYTES = 1 << 20
CALLS_THAT_WAIT = 3
BAD_RECORD = b'{"models": [{"model_id": "org/mo'


class MomentError(AssertionError):
    """The moment that a fault is for did not come."""


class Faults:
    """Causes the faults of a schedule, one after the other.

    Args:
        world: what is broken.
        log: where it is noted.
        calls: the kinds of calls.
        clock: counts the seconds of the bound.
        bound: seconds within which all must be well again after a fault.
    """

    def __init__(
        self, world: World, log: Log, calls: Calls, clock: FairClock, bound: float
    ) -> None:
        self._world = world
        self._log = log
        self._calls = calls
        self._clock = clock
        self._bound = bound
        self._number = 0
        self._others: list[str] = []
        self._channel = open_channel(world.stack.addresses["envoy"])
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="visitor")

    def close(self) -> None:
        """Ends what the faults have begun."""
        self._pool.shutdown()
        self._channel.close()

    def cause(self, fault: Fault, *, wait: bool = True) -> None:
        """Causes a fault and, if wanted, waits until all is well again."""
        self._number += 1
        number = self._number
        self._log.add("fault", number=number, phase="planned", **fault.fields())
        well: Future[bool] | None = None
        try:
            with self._moment(fault) as model:
                self._log.add("fault", number=number, phase="begins", **fault.fields())
                load: Future[str] | None = None
                try:
                    with KINDS[fault.kind](self._world, fault, model):
                        if fault.moment == "arriving":
                            load = self._in_background("load", model)
                        time.sleep(fault.seconds)
                finally:
                    self._undo()
                    self._log.add("fault", number=number, phase="ends", name=fault.name)
                if wait:
                    well = self._pool.submit(self.wait_until_well, number, fault.name)
                if load:
                    load.result()
        except MomentError as error:
            self._undo()
            self._log.add("fault", number=number, phase="missed", name=fault.name, why=str(error))
        if wait:
            _ = well.result() if well else self.wait_until_well(number, fault.name)
            self._log.add("fault", number=number, phase="over", name=fault.name)

    def storm(self, models: int, seed: int, seconds: float) -> None:
        """Many threads load, unload and ask some models; these can be loaded and asked then."""
        self._number += 1
        number, fault = self._number, Fault("storm", value=f"{models} models")
        publish = self._world.models.publish_known
        names = [publish(f"storm-{models}-{each}") for each in range(models)]
        self._log.add("fault", number=number, phase="begins", **fault.fields())
        made = storm(self._world, self._log, self._calls, seed, names, seconds)
        self._log.add("fault", number=number, phase="ends", name=fault.name, calls=made)
        well = self._pool.submit(self.wait_until_well, number, fault.name)
        for name in names:
            self._see_off(name)
            self._world.models.withdraw(name)
        well.result()
        self._log.add("fault", number=number, phase="over", name=fault.name)

    def _undo(self) -> None:
        """Whatever a fault has changed is as it was."""
        self._world.behave(Behaviour())

    def wait_until_well(self, number: int, name: str) -> bool:
        """Waits until the desired models are READY and each kind of call is answered right."""
        since, began = self._log.now(), self._clock.now()
        missing: list[str] = []
        phase = "not well"
        while phase == "not well" and self._clock.now() < began + self._bound:
            missing = [*self._not_ready(), *self._not_answered(since)]
            if missing:
                time.sleep(LOOK_SECONDS)
            else:
                phase = "well"
        self._log.add(
            "fault",
            number=number,
            phase=phase,
            name=name,
            missing=missing,
            seconds=round(self._clock.now() - began, 2),
            on_the_wall=round(self._log.now() - since, 2),
        )
        return phase == "well"

    def _not_ready(self) -> list[str]:
        states = model_states(self._channel)
        return [wish.model_id for wish in WISHES if states.get(wish.model_id) != READY]

    def _not_answered(self, since: float) -> list[str]:
        answered = {
            event["kind"]
            for event in self._log.events()
            if event["what"] == "call" and event["began"] >= since and event["outcome"] == RIGHT
        }
        return [kind for kind in NEEDED if kind not in answered]

    @contextlib.contextmanager
    def _moment(self, fault: Fault) -> Iterator[str]:
        """Waits for the moment; yields the model that is at it, and looks at that afterwards."""
        if not fault.moment:
            turn = WISHES[self._number % len(WISHES)].model_id
            yield CHAT if fault.target == "stepper" else turn
        elif fault.moment == "generating":
            with self._generating():
                yield CHAT
        else:
            with self._visitor(fault) as visitor, self._at[fault.moment](self, visitor):
                yield visitor

    @contextlib.contextmanager
    def _arriving(self, visitor: str) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def _generating(self) -> Iterator[None]:
        request = text_pb.TextRequest(
            model=CHAT, prompt=QUESTION, max_length=LONG_TOKENS, temperature=0
        )
        stub = text_grpc.TransformersServiceStub(self._channel)
        stream = stub.GenerateText(request, timeout=CALL_SECONDS)
        try:
            try:
                next(stream)
            except (grpc.RpcError, StopIteration) as error:
                raise MomentError(f"no token came: {error}") from None
            yield
        finally:
            stream.cancel()

    @contextlib.contextmanager
    def _visitor(self, fault: Fault) -> Iterator[str]:
        """A model that comes, and that in the end is loaded, asked and unloaded.

        Nobody has fetched or converted it, where that matters for the moment of the fault.
        """
        if fault.moment in _AFTER_CONVERSION:
            name = ON_CALL if fault.moment == "loading for calls" else "visitor"
            visitor = self._world.models.publish_known(name)
        else:
            visitor = self._world.models.publish_new(f"visitor-{self._number}")
        try:
            yield visitor
            self._see_off(visitor)
        finally:
            self._world.models.withdraw(visitor)

    def _see_off(self, visitor: str) -> None:
        """A model that a fault has hit can be loaded, answers right and can be unloaded."""
        for action in ("load", "embed", "unload"):
            give_up = self._clock.now() + self._bound
            while self._visit(action, visitor) != RIGHT:
                if self._clock.now() > give_up:
                    self._log.add("visitor", model=visitor, failed=action)
                    return
                if action == "embed":
                    self._visit("load", visitor)  # its process may have died since
                if action == "unload" and visitor not in model_states(self._channel):
                    break  # an unload that was answered by an error has been done all the same
                time.sleep(LOOK_SECONDS)

    def _visit(self, action: str, visitor: str) -> str:
        kind, call = f"visitor {action}", self._calls.guest(action, visitor)
        return make(self._log, kind, self._channel, call)

    def _in_background(self, action: str, visitor: str) -> Future[str]:
        return self._pool.submit(self._visit, action, visitor)

    def _wait(self, what: str, probe: Callable[[], object], load: Future[str]) -> None:
        """Waits for a moment of a load or an unload; one that has ended will not come to it."""

        def come() -> object:
            if found := probe():
                return found
            if load.done():
                raise MomentError(f"{what}: over before it was seen")
            return None

        try:
            wait_for(what, come, MOMENT_SECONDS)
        except MomentError:
            raise
        except AssertionError as error:
            raise MomentError(str(error)) from None

    @contextlib.contextmanager
    def _fetching(self, visitor: str) -> Iterator[None]:
        place = held(self._world.models.folder)
        place.unlink(missing_ok=True)
        self._world.behave(Behaviour(hold=visitor))
        load = self._in_background("load", visitor)
        self._wait("a fetch at 40 %", place.exists, load)
        yield
        load.result()

    @contextlib.contextmanager
    def _converting(self, visitor: str) -> Iterator[None]:
        load = self._in_background("load", visitor)
        self._wait("a conversion", lambda: _conversions(self._world, visitor), load)
        yield
        load.result()

    @contextlib.contextmanager
    def _loading(self, visitor: str) -> Iterator[None]:
        load = self._in_background("load", visitor)
        self._wait("a process that loads", lambda: self._world.model_process(visitor), load)
        yield
        load.result()

    @contextlib.contextmanager
    def _loading_for_calls(self, visitor: str) -> Iterator[None]:
        """Calls wait for a model that nobody has loaded."""
        calls = [self._in_background("embed", visitor) for _ in range(CALLS_THAT_WAIT)]
        process = lambda: self._world.model_process(visitor)  # noqa: E731
        self._wait("a process that loads for calls", process, calls[0])
        yield
        for call in calls:
            call.result()

    @contextlib.contextmanager
    def _unloading(self, visitor: str) -> Iterator[None]:
        if self._visit("load", visitor) != RIGHT:
            raise MomentError("the visitor could not be loaded")
        over = threading.Event()

        def requests() -> Iterator[text_pb.GenerateEmbeddingsRequest]:
            yield text_pb.GenerateEmbeddingsRequest(model=visitor, texts=TEXTS[:1])
            over.wait()

        stub = text_grpc.TransformersServiceStub(self._channel)
        stream = stub.StreamEmbeddings(requests(), timeout=CALL_SECONDS)
        try:
            try:
                next(stream)
            except (grpc.RpcError, StopIteration) as error:
                raise MomentError(f"no vector came: {error}") from None
            unload = self._in_background("unload", visitor)
            unloading = lambda: model_states(self._channel).get(visitor) == UNLOADING  # noqa: E731
            self._wait("an unload that waits", unloading, unload)
            yield
        finally:
            over.set()
            stream.cancel()
        unload.result()

    @contextlib.contextmanager
    def _evicting(self, visitor: str) -> Iterator[None]:
        """The visitor makes way for another one, whose process is the one that loads then."""
        for last in "ab":  # one of them may find the guest's place
            self._others.append(self._world.models.publish_known(f"visitor-{last}"))
        try:
            if self._visit("load", visitor) != RIGHT:
                raise MomentError("the visitor could not be loaded")
            loads = [self._in_background("load", other) for other in self._others]
            leaves = lambda: model_states(self._channel).get(visitor) in LEAVES  # noqa: E731
            self._wait("an eviction", leaves, loads[-1])
            yield
            for load in loads:
                load.result()
        finally:
            for other in self._others:
                self._see_off(other)
                self._world.models.withdraw(other)
            self._others.clear()

    _at: ClassVar = {
        "evicting": _evicting,
        "arriving": _arriving,
        "fetching": _fetching,
        "converting": _converting,
        "loading": _loading,
        "loading for calls": _loading_for_calls,
        "unloading": _unloading,
    }


def _conversions(world: World, model: str) -> list[psutil.Process]:
    return world.children("text_svc.convert ", f'"{model}"')


def _victims(world: World, fault: Fault, model: str) -> list[int]:
    """The processes that a fault is aimed at; none if it has just ended."""
    if fault.target == "model process":
        return [each.pid for each in world.model_process(model)]
    if fault.target == "stepper":
        return [each.pid for each in world.stepper(model)]
    if fault.target == "conversion":
        return [each.pid for each in _conversions(world, model)]
    with contextlib.suppress(KeyError):
        return [world.pid(fault.target)]
    return []


def _send(pids: list[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


# What a fault does: entered to cause it, left to take it back where it can be.
Kind = Callable[[World, Fault, str], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def _kill(world: World, fault: Fault, model: str) -> Iterator[None]:
    _send(_victims(world, fault, model), signal.SIGKILL)
    if fault.target == "provider":
        world.start_provider()  # the others are started again by those who run them
    yield


@contextlib.contextmanager
def _stop_and_go_on(world: World, fault: Fault, model: str) -> Iterator[None]:
    pids = _victims(world, fault, model)
    _send(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _send(pids, signal.SIGCONT)


@contextlib.contextmanager
def _stop_and_kill(world: World, fault: Fault, model: str) -> Iterator[None]:
    pids = _victims(world, fault, model)
    _send(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _send(pids, signal.SIGKILL)
        if fault.target == "provider":
            world.start_provider()


@contextlib.contextmanager
def _provider_slow(world: World, fault: Fault, model: str) -> Iterator[None]:
    world.behave(Behaviour(slow=True))
    yield


@contextlib.contextmanager
def _provider_silent(world: World, fault: Fault, model: str) -> Iterator[None]:
    world.behave(Behaviour(silent=True))
    yield


@contextlib.contextmanager
def _provider_lies(world: World, fault: Fault, model: str) -> Iterator[None]:
    world.behave(Behaviour(lie=fault.value))
    yield


@contextlib.contextmanager
def _other_files(world: World, fault: Fault, model: str) -> Iterator[None]:
    """The provider comes back with a new version of the model that is being fetched."""
    os.kill(world.provider_pid, signal.SIGKILL)
    world.models.publish(model, other=True)
    world.behave(Behaviour())
    world.start_provider()
    yield


@contextlib.contextmanager
def _full_disk(folder: str, world: World, fault: Fault, model: str) -> Iterator[None]:
    ballast = world.inside(folder) / "ballast"
    try:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(BALLAST_BYTES)):
                pass
        yield
    finally:
        ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def _full_memory(world: World, fault: Fault, model: str) -> Iterator[None]:
    """The kernel gives a process no more memory, as where the machine has no more."""
    before: list[tuple[psutil.Process, tuple[int, int]]] = []
    for pid in _victims(world, fault, model):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            before.append((process, process.rlimit(psutil.RLIMIT_DATA)))
            process.rlimit(psutil.RLIMIT_DATA, (0, before[-1][1][1]))
    try:
        yield
    finally:
        for process, limits in before:
            with contextlib.suppress(psutil.Error):
                process.rlimit(psutil.RLIMIT_DATA, limits)


@contextlib.contextmanager
def _damaged_record(world: World, fault: Fault, model: str) -> Iterator[None]:
    pid = world.pid("model_mgmt_svc")
    os.kill(pid, signal.SIGSTOP)  # it does not write a good one over it
    (world.inside("state") / "desired_models.json").write_bytes(BAD_RECORD)
    os.kill(pid, signal.SIGKILL)
    yield


@contextlib.contextmanager
def _clock_jumps(world: World, fault: Fault, model: str) -> Iterator[None]:
    world.jump(int(fault.value.split()[0]))
    try:
        yield
    finally:
        world.jump(0)


KINDS: dict[str, Kind] = {
    "kill": _kill,
    "stop and go on": _stop_and_go_on,
    "stop and kill": _stop_and_kill,
    "provider slow": _provider_slow,
    "provider silent": _provider_silent,
    "provider lies": _provider_lies,
    "provider restarts with other files": _other_files,
    "disk of the caches full": partial(_full_disk, "cache"),
    "disk of the record full": partial(_full_disk, "state"),
    "memory full": _full_memory,
    "record of desired models damaged": _damaged_record,
    "clock jumps": _clock_jumps,
}
