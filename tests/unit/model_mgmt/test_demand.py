"""Loads for calls, in a time that passes at once: the order, what waits, and what fails."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from model_mgmt_svc.auto_load import AutoLoad
from model_mgmt_svc.demand import CLOSED_SECONDS, Demand
from model_mgmt_svc.demand_line import Line
from model_mgmt_svc.desired import DesiredModel, DesiredModels
from model_mgmt_svc.eviction import Choice, Rank, Resident, choose
from model_mgmt_svc.lifecycle import Lifecycle
from model_mgmt_svc.reconciler import Reconciler
from model_mgmt_svc.replicas import LoadedModel
from shared.errors import (
    InvalidModelError,
    ModelNotFoundError,
    ModelNotLoadedError,
    OutOfMemoryError,
    PipelineMismatchError,
    ProviderUnavailableError,
    ServiceError,
    WorkerUnavailableError,
)
from shared.model_host import HOST, Restore, format_needs
from shared.model_ids import ModelId
from tests.support.virtual_time import now, run

LOAD_SECONDS = 2.0
CALL_SECONDS = 0.1
WAIT_SECONDS = 30.0
A, B, C = (ModelId(f"org/{name}") for name in "abc")
EMBED = "GenerateEmbeddings"
EMBEDDER = "feature-extraction"


@dataclass
class Loaded:
    """A model in memory."""

    loaded_at: int
    idle_since: float
    calls: int = 0
    closed: bool = False
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class World:
    """A replica with room for `room` models of the same size, its control plane and its callers.

    Attributes:
        loads: when each load has begun, by model.
        answered: the calls, in the order in which they began to be answered.
        evictions: the models that were evicted.
    """

    def __init__(
        self,
        room: int = 1,
        *,
        auto_load: str = "true",
        wait_seconds: float = WAIT_SECONDS,
        desired: Mapping[ModelId, DesiredModel] | None = None,
    ) -> None:
        self.room_for = room
        self.loads: dict[ModelId, list[float]] = {}
        self.tries = Counter[ModelId]()
        self.answered: list[ModelId] = []
        self.evictions: list[ModelId] = []
        self.resolved: list[ModelId] = []
        self.memory: dict[ModelId, Loaded] = {}
        self.reserved: set[ModelId] = set()
        self.ranks: dict[ModelId, Rank] = {}
        self.errors: dict[ModelId, ServiceError] = {}
        self.retries: dict[ModelId, Restore] = {}
        self.desired = dict(desired or {})
        line = Line(wait_seconds=wait_seconds, idle_seconds=1.0, clock=now)
        self.demand = Demand(
            AutoLoad.parse(auto_load),
            line,
            cast(DesiredModels, self.desired),
            cast(Lifecycle, self),
            cast(Reconciler, self),
            self.resolve,
            clock=now,
            wall_clock=now,
        )

    async def resolve(self, model_id: ModelId) -> DesiredModel:
        self.resolved.append(model_id)
        await asyncio.sleep(0.01)
        if error := self.errors.get(model_id):
            raise error
        return DesiredModel(model_id, EMBEDDER)

    # The lifecycle and the reconciler.

    def model_of(self, name: ModelId) -> ModelId:
        return name

    def loading(self) -> list[DesiredModel]:
        return []

    def retry(self, model_id: ModelId) -> Restore | None:
        return self.retries.get(model_id)

    async def held_as(self, model_id: ModelId) -> str:
        return EMBEDDER if model_id in self.memory else ""

    async def is_ready(self, model: DesiredModel) -> bool:
        await asyncio.sleep(0.001)
        return model.model_id in self.memory

    async def loaded(self) -> list[LoadedModel]:
        return [
            LoadedModel(key, EMBEDDER, 0, 0, each.loaded_at, 1) for key, each in self.memory.items()
        ]

    def choice(self, model_id: ModelId, view: Callable[[Resident], Resident]) -> Choice:
        residents = []
        for key in sorted(self.reserved - {model_id}):
            each = self.memory.get(key)
            residents.append(
                view(
                    Resident(
                        key,
                        {HOST: 1},
                        idle_seconds=now() - each.idle_since if each and not each.calls else 0.0,
                        calls=each.calls if each else 0,
                        rank=self.ranks.get(key, Rank()),
                        stays="" if each else "is being loaded",
                    )
                )
            )
        return choose({HOST: 1}, {HOST: self.room_for - len(residents)}, residents)

    async def room(
        self, model: DesiredModel, needs: object, view: Callable[[Resident], Resident]
    ) -> Choice:
        await asyncio.sleep(0.001)
        return self.choice(model.model_id, view)

    async def load(
        self, model: DesiredModel, *, view: Callable[[Resident], Resident]
    ) -> LoadedModel:
        model_id = model.model_id
        self.tries[model_id] += 1
        await asyncio.sleep(0.01)
        if error := self.errors.get(model_id):
            raise error
        choice = self.choice(model_id, view)
        if not choice.enough:
            raise OutOfMemoryError("it does not fit", metadata={"needs": format_needs({HOST: 1})})
        for victim in choice.victims:
            assert await self.evict(victim.model_id, "")
        self.reserved.add(model_id)
        self.loads.setdefault(model_id, []).append(now())
        await asyncio.sleep(LOAD_SECONDS)
        self.memory[model_id] = Loaded(int(now()), now())
        return (await self.loaded())[-1]

    async def evict(self, model_id: ModelId, why: str, *, idle_within: float = 0) -> bool:
        model = self.memory[model_id]
        if model.calls and idle_within:
            model.closed = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(idle_within):
                    await model.idle.wait()
            model.closed = False
        if model.calls:
            return False
        del self.memory[model_id]
        self.reserved.discard(model_id)
        self.evictions.append(model_id)
        return True

    # The callers, and text_svc.

    async def call(self, model_id: ModelId, seconds: float = CALL_SECONDS) -> None:
        """A call: it waits for its model, and takes a while."""
        while (model := self.memory.get(model_id)) is None or model.closed:
            await self.demand.want(model_id, EMBED)
        self.answered.append(model_id)
        model.calls += 1
        model.idle.clear()
        await asyncio.sleep(seconds)
        model.calls -= 1
        model.idle_since = now()
        if not model.calls:
            model.idle.set()

    async def calls(self, model_id: ModelId, until: float, gap: float = 0.05) -> list[float]:
        """A caller who calls one model all the time; how long each call took."""
        took = []
        while now() < until:
            begun = now()
            await self.call(model_id)
            took.append(now() - begun)
            await asyncio.sleep(gap)
        return took

    def put(self, model_id: ModelId) -> None:
        """A model that is in memory from the beginning."""
        self.memory[model_id] = Loaded(int(now()), now())
        self.reserved.add(model_id)

    def assert_rare(self) -> None:
        """No model was loaded twice within the longest wait."""
        for model_id, times in self.loads.items():
            gaps = [after - before for before, after in itertools.pairwise(times)]
            assert all(gap >= WAIT_SECONDS for gap in gaps), (model_id, times)


def in_virtual_time(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test whose time passes at once."""

    def wrapper() -> None:
        run(test())

    wrapper.__name__, wrapper.__doc__ = test.__name__, test.__doc__
    return wrapper


def groups(answered: list[ModelId]) -> list[ModelId]:
    """The models in the order of their calls, each group once."""
    return [
        each for each, before in zip(answered, [None, *answered], strict=False) if each != before
    ]


@in_virtual_time
async def test_calls_of_two_models_in_turns_run_in_two_groups() -> None:
    world = World(room=1)
    await asyncio.gather(*(world.call(each) for each in (A, B, A, B, A, B)))
    assert groups(world.answered) == [A, B]
    assert (len(world.loads[A]), len(world.loads[B])) == (1, 1)
    assert now() < 2 * LOAD_SECONDS + 1 + 1


@in_virtual_time
async def test_what_fits_is_loaded_at_once_and_together() -> None:
    world = World(room=3)
    await asyncio.gather(*(world.call(each) for each in (A, B, C, A, B, C)))
    assert now() < LOAD_SECONDS + 0.5
    assert world.evictions == []
    assert set(world.tries.values()) == {1}


@in_virtual_time
async def test_one_who_calls_alternately_waits_for_the_loads_alone() -> None:
    world = World(room=1)
    for _ in range(5):
        await world.call(A)
        await world.call(B)
    assert now() < 10 * (LOAD_SECONDS + 1.0 + 0.5 + CALL_SECONDS)


@in_virtual_time
async def test_under_steady_calls_a_model_is_loaded_once_in_the_longest_wait() -> None:
    """Six callers over three models that fit two at a time, for ten minutes."""
    world = World(room=2)
    callers = [world.calls(each, 600, gap) for each in (A, B, C) for gap in (0.03, 0.05)]
    took = await asyncio.gather(*callers)
    world.assert_rare()
    assert sum(map(len, world.loads.values())) <= 600 / WAIT_SECONDS * 2
    # None starves: a model comes back once others have had their time.
    longest = max(max(each) for each in took)
    assert longest <= 2 * (WAIT_SECONDS + LOAD_SECONDS) + 1
    counts = Counter(world.answered)
    assert min(counts.values()) >= max(counts.values()) / 3


@in_virtual_time
async def test_random_callers_neither_starve_nor_load_too_often() -> None:
    random_calls = random.Random(7)
    world = World(room=2)

    async def caller() -> float:
        longest = 0.0
        while now() < 900:
            model_id = random_calls.choice([A, A, B, C])
            begun = now()
            await world.call(model_id, random_calls.uniform(0.05, 3))
            longest = max(longest, now() - begun)
        return longest

    longest = max(await asyncio.gather(*(caller() for _ in range(12))))
    assert longest < 3 * (WAIT_SECONDS + LOAD_SECONDS)
    assert {*world.answered} == {A, B, C}


@in_virtual_time
async def test_without_a_longest_wait_the_order_is_that_of_the_calls() -> None:
    world = World(room=1, wait_seconds=0)
    callers = [world.calls(each, 60) for each in (A, B)]
    await asyncio.gather(*callers)
    assert len(world.loads[A]) > 5


@in_virtual_time
async def test_a_closed_model_takes_no_calls_until_it_is_gone_and_cuts_none() -> None:
    world = World(room=1)
    world.put(A)
    long_call = asyncio.create_task(world.call(A, WAIT_SECONDS + 10))
    steady = asyncio.create_task(world.calls(A, 60))
    await asyncio.sleep(1)
    begun = now()
    await world.call(B)
    waited = now() - begun
    assert long_call.done()  # it was not cut
    assert WAIT_SECONDS + 8 < waited < WAIT_SECONDS + 10 + LOAD_SECONDS + 1
    assert world.evictions == [A]
    await steady
    world.assert_rare()


@in_virtual_time
async def test_a_call_that_does_not_end_keeps_its_model_and_others_go_on() -> None:
    world = World(room=1)
    world.put(A)
    endless = asyncio.create_task(world.call(A, 1e6))
    steady = asyncio.create_task(world.calls(A, 200))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(150):
            await world.call(B)
    assert max(await steady) <= CLOSED_SECONDS + 1  # while it was closed
    assert A in world.memory
    assert not endless.done()
    endless.cancel()


@in_virtual_time
async def test_a_call_that_goes_away_leaves_the_line() -> None:
    world = World(room=1)
    world.put(A)
    steady = asyncio.create_task(world.calls(A, 100))
    gone = asyncio.create_task(world.call(B))
    await asyncio.sleep(5)
    assert [each.model_id for each in world.demand.wanted()] == [B]
    gone.cancel()
    await asyncio.wait({gone})
    assert world.demand.wanted() == []
    await steady
    assert world.evictions == []
    assert B not in world.loads


@in_virtual_time
async def test_a_load_that_has_begun_is_shared_with_those_that_come_later() -> None:
    world = World(room=1)
    first = [asyncio.create_task(world.call(A)) for _ in range(10)]
    await asyncio.sleep(LOAD_SECONDS / 2)
    await world.call(A)
    await asyncio.gather(*first)
    assert world.tries == {A: 1}


@in_virtual_time
async def test_why_a_load_fails_reaches_all_calls_and_is_not_tried_for_each() -> None:
    world = World(room=1)
    world.errors[A] = InvalidModelError("broken")
    calls = [asyncio.create_task(world.call(A)) for _ in range(20)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, InvalidModelError) for each in outcomes)
    while now() < 100:  # a storm
        with pytest.raises(ServiceError, match="broken"):
            await world.call(A)
        await asyncio.sleep(0.1)
    assert len(world.resolved) <= 7  # after 2, 4, 8, 16, 32 and 60 s
    del world.errors[A]
    world.demand.forgive(A)
    await world.call(A)


@in_virtual_time
async def test_a_storm_of_calls_of_the_wrong_type_loads_and_asks_nothing() -> None:
    world = World(room=1)
    for _ in range(20):
        with pytest.raises(PipelineMismatchError, match=r"GenerateText needs one of .*text-gen"):
            await world.demand.want(A, "GenerateText")
    assert (len(world.resolved), world.loads) == (1, {})
    await world.call(A)  # of the right type


@pytest.mark.parametrize("error", [ModelNotFoundError("none"), ProviderUnavailableError("away")])
def test_a_model_that_cannot_be_resolved_keeps_its_error(error: ServiceError) -> None:
    async def work() -> None:
        world = World(room=1)
        world.errors[A] = error
        for _ in range(3):
            with pytest.raises(type(error)):
                await world.call(A)
        assert (world.resolved, world.tries) == ([A], {})

    run(work())


@in_virtual_time
async def test_ids_that_callers_make_up_are_not_remembered_without_end() -> None:
    world = World(room=1)
    for number in range(3000):
        model_id = ModelId(f"made/up{number}")
        world.errors[model_id] = ModelNotFoundError("none")
        with pytest.raises(ModelNotFoundError):
            await world.call(model_id)
    assert len(world.demand._failures) <= 1000


@in_virtual_time
async def test_where_no_room_can_be_made_calls_are_told_at_once() -> None:
    world = World(room=1)
    world.put(A)
    world.ranks[A] = Rank(pinned=True)
    with pytest.raises(OutOfMemoryError, match="does not fit"):
        await world.call(B)
    assert now() < 2
    assert world.tries == {B: 1}


@in_virtual_time
async def test_patterns_say_which_models_are_loaded_for_calls() -> None:
    evicted = DesiredModel(C, EMBEDDER, evicted_why="to make room for org/a")
    world = World(room=2, auto_load="org/a*, other/*", desired={C: evicted})
    await world.call(A)
    with pytest.raises(ModelNotLoadedError, match="call LoadModel first"):
        await world.call(B)
    await world.call(C)  # it was asked for, and comes back
    assert world.resolved == [A]


@in_virtual_time
async def test_nothing_is_loaded_for_calls_unless_the_operator_says_so() -> None:
    world = World(room=1, auto_load="false", desired={C: DesiredModel(C, EMBEDDER)})
    for model_id in (A, C):
        with pytest.raises(ModelNotLoadedError):
            await world.call(model_id)
    assert not world.loads


@in_virtual_time
async def test_a_model_that_is_restored_later_is_not_loaded_by_each_call() -> None:
    desired = {A: DesiredModel(A, EMBEDDER), B: DesiredModel(B, EMBEDDER)}
    world = World(room=2, desired=desired)
    world.retries[A] = Restore(A, 7.0, reason="it died")
    world.retries[B] = Restore(B, given_up=True, reason="it died")
    with pytest.raises(WorkerUnavailableError, match="in 7 s: it died") as caught:
        await world.call(A)
    assert caught.value.retry_after == 7.0
    with pytest.raises(ModelNotLoadedError, match="call LoadModel to try again"):
        await world.call(B)
    assert not world.loads
    world.retries[A] = replace(world.retries[A], wait_seconds=0.0)
    await world.call(A)


@pytest.mark.parametrize(
    ("text", "on", "allowed"),
    [
        ("", False, ()),
        ("false", False, ()),
        ("off", False, ()),
        ("True", True, (A, ModelId("x"))),
        ("org/*", True, (A,)),
        ("org/[ab], x", True, (A, ModelId("x"))),
    ],
)
def test_the_setting_is_read(text: str, on: bool, allowed: tuple[ModelId, ...]) -> None:
    auto_load = AutoLoad.parse(text)
    assert auto_load.on == on
    ids = (A, ModelId("x"), ModelId("other/a"))
    if text != "True":
        assert tuple(each for each in ids if auto_load.allows(each)) == allowed


@pytest.mark.parametrize("text", ["true, org/*, a b", "org/{a}", "a\nb"])
def test_a_setting_that_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be one of true, false, or patterns"):
        AutoLoad.parse(text)
