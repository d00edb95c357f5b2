"""What a service that holds models tells the control plane of them, and how a load is followed."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from shared.errors import CallCancelledError
from shared.model_ids import ModelId
from shared.pipelines import Pipeline

# Time between two reports of a load.
PROGRESS_SECONDS = 0.2
# Smaller changes of a memory figure are no news, see `steady`.
STEADY_BYTES = 2 << 20
STEADY_SHARE = 0.02


class ModelState(enum.Enum):
    """Where a model is in its life; the names are those of `ml.internal.ModelState`."""

    FETCHING = "fetching"
    CONVERTING = "converting"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"


# The device of memory that is not an accelerator's, which are named as torch does: "cuda:0".
HOST = "host"


@dataclass(frozen=True)
class MemoryPool:
    """Memory of a device, in bytes, of which models reserve their shares.

    Attributes:
        device: `HOST`, or an accelerator such as "cuda:0".
    """

    device: str
    budget_bytes: int
    reserved_bytes: int

    @property
    def free_bytes(self) -> int:
        """What no model has reserved; negative when they hold more than the budget."""
        return self.budget_bytes - self.reserved_bytes


def format_needs(needs: Mapping[str, int]) -> str:
    """Bytes by device as one word, such as "host=1024,cuda:0=2048", for an error's metadata."""
    return ",".join(f"{device}={size}" for device, size in needs.items())


def parse_needs(text: str) -> dict[str, int]:
    """What `format_needs` has written; empty for a text that is something else."""
    needs = {}
    for part in text.split(","):
        device, _, size = part.partition("=")
        if not (device and size.isascii() and size.isdigit()):
            return {}
        needs[device] = int(size)
    return needs


class Closable(Protocol):
    """What is held until it is closed."""

    def close(self) -> None: ...


@dataclass(eq=False)
class HostedModel:
    """A model that a service holds or is loading. Services add what runs it.

    Attributes:
        raw_options: the options as the caller wrote them.
        bytes_fetched: of its files, so far.
        bytes_total: of the files known so far; 0 while unknown.
        ram_bytes: host memory that it holds now, measured; 0 until READY.
        vram_bytes: the same of the accelerator's memory.
        reserved: bytes that it has reserved of each `MemoryPool`, by device.
        weights_bytes: of its weights, a part of one of these.
        cache_bytes: what its key-value cache has taken so far, another part.
        cache_limit_bytes: the most that the cache can take.
        loaded_at: Unix seconds, 0 until READY.
        reason: why it is FAILED.
        engine: what runs it, where the service has several engines.
        note: a sentence for the caller who loads it, often empty.
        calls: calls and streams that it answers now.
        last_used_at: when its last call began or ended, in Unix seconds; 0 if it has had none.
        load_share: share of its weights that was read, from 0 to 1, while it is LOADING; None where
            it is not known.
        use: keeps its files in the cache; None before it is fetched and after it is unloaded.
    """

    model_id: ModelId
    pipeline: Pipeline
    raw_options: Mapping[str, str] = field(default_factory=dict)
    bytes_fetched: int = 0
    bytes_total: int = 0
    ram_bytes: int = 0
    vram_bytes: int = 0
    reserved: Mapping[str, int] = field(default_factory=dict)
    weights_bytes: int = 0
    cache_bytes: int = 0
    cache_limit_bytes: int = 0
    loaded_at: int = 0
    reason: str = ""
    engine: str | None = None
    note: str = ""
    calls: int = 0
    last_used_at: float = 0.0
    load_share: float | None = None
    use: Closable | None = None

    def __post_init__(self) -> None:
        self.states = [ModelState.FETCHING]
        self._idle_since = time.monotonic()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Counts a call or a stream while the body runs."""
        self.calls += 1
        self.last_used_at = time.time()
        try:
            yield
        finally:
            self.calls -= 1
            self.last_used_at = time.time()
            self._idle_since = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """For how long it has had no call in flight since it is READY; 0 before.

        Not by `last_used_at`: the clock of the machine may jump.
        """
        if self.calls or self.state is not ModelState.READY:
            return 0.0
        return time.monotonic() - self._idle_since

    def let_go(self) -> None:
        """Its files may be removed from the cache from now on."""
        if self.use:
            self.use.close()
            self.use = None

    @property
    def state(self) -> ModelState:
        """The newest of `states`, all that it has been in."""
        return self.states[-1]

    @state.setter
    def state(self, state: ModelState) -> None:
        self.states.append(state)
        self._idle_since = time.monotonic()


@dataclass(frozen=True)
class Restore:
    """A model that was loaded, and that the control plane loads again unasked.

    Attributes:
        wait_seconds: until the next try; 0 while one is under way or about to begin.
        given_up: there is no next try until somebody asks for the model.
        reason: why the last try failed or the model ended, if it did, or why it was evicted.
        evicted: it was taken out of memory, and does not come back unasked.
    """

    model_id: ModelId
    wait_seconds: float = 0.0
    given_up: bool = False
    reason: str = ""
    evicted: bool = False


class Restores:
    """The models that are to come back to this service, as the control plane told last.

    Attributes:
        auto_load: whether it may load a model for the calls that ask for it.
        told: whether the control plane has told anything since the service started.
    """

    def __init__(self) -> None:
        self.auto_load = False
        self.told = False
        self._by_id: dict[ModelId, Restore] = {}
        self._told_at = 0.0

    def replace(self, restores: Iterable[Restore], *, auto_load: bool = False) -> None:
        """Takes what the control plane tells, in place of what it told before."""
        self.auto_load, self.told = auto_load, True
        self._by_id = {restore.model_id: restore for restore in restores}
        self._told_at = time.monotonic()

    def put(self, restore: Restore) -> None:
        """Takes what is told of one model, beside what was told before."""
        self._by_id[restore.model_id] = restore

    def drop(self, model_id: ModelId) -> None:
        """Forgets what was told of a model."""
        self._by_id.pop(model_id, None)

    def get(self, model_id: ModelId) -> Restore | None:
        """The restore of a model, as of now; None if none is planned."""
        restore = self._by_id.get(model_id)
        if restore is None:
            return None
        wait = restore.wait_seconds - (time.monotonic() - self._told_at)
        return replace(restore, wait_seconds=max(wait, 0.0))


@dataclass(frozen=True)
class ModelLife:
    """A model's options of life, which the control plane acts on.

    Attributes:
        aliases: other names that calls may use.
        options: all of them as LoadModel takes them.
    """

    model_id: ModelId
    aliases: tuple[ModelId, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


class ModelNames:
    """The other names of this service's models, as the control plane told last.

    Attributes:
        lives: what it told, to be given back to one that has lost its record.
    """

    def __init__(self) -> None:
        self.lives: Sequence[ModelLife] = ()
        self._by_alias: Mapping[ModelId, ModelId] = {}

    def replace(self, lives: Iterable[ModelLife]) -> None:
        """Takes what the control plane tells, in place of what it told before."""
        self.lives = list(lives)
        self._by_alias = {alias: life.model_id for life in self.lives for alias in life.aliases}

    def model_of(self, name: ModelId) -> ModelId:
        """The model that a call means by this name."""
        return self._by_alias.get(name, name)


@dataclass(frozen=True)
class LoadProgress:
    """How far a load has come; `state` may be one that `model` has left by now."""

    model: HostedModel
    state: ModelState
    bytes_fetched: int
    bytes_total: int


def steady(before: int, now: int) -> int:
    """A memory figure that changes only when much of it does: watchers are told of each change."""
    return before if now and abs(now - before) < max(STEADY_BYTES, now * STEADY_SHARE) else now


class ModelHost(Protocol):
    """A service's models, as the control plane drives them."""

    def load(
        self, model_id: ModelId, pipeline_type: str, options: Mapping[str, str]
    ) -> AsyncIterator[LoadProgress]:
        """Loads a model, or joins a load of the same one. The last report is READY.

        Closing the iterator cancels the load when nobody else waits for it, at once or after some
        time.

        Raises:
            ServiceError: why it could not be loaded.
        """

    def check(self, pipeline_type: str, options: Mapping[str, str]) -> Mapping[str, str]:
        """All options that a load would have, with the values of those that are not given.

        Raises:
            InvalidArgumentError: the pipeline type or an option is not valid.
        """

    async def unload(
        self, model_id: ModelId, *, if_idle: bool = False, idle_within: float = 0
    ) -> bool:
        """Frees a model, after its running calls; a load of it is cancelled.

        Args:
            if_idle: only if it is READY and answers no calls, with no time in between for one.
            idle_within: with `if_idle`, seconds for which it takes no calls until those under way
                have ended; if they have not by then, or the caller is cancelled, it takes calls
                again.

        Returns:
            Whether it was freed; always true without `if_idle`.

        Raises:
            ModelNotLoadedError: there is no such model here.
        """

    def memory(self) -> Iterable[MemoryPool]:
        """The memory that the models share; nothing if it is not counted."""

    def waiting_calls(self) -> Mapping[ModelId, int]:
        """How many calls wait for a model that is to be loaded for them, by its id."""

    async def measure(self) -> None:
        """Brings the memory figures of the models up to date, in a moment."""

    def models(self) -> Iterable[HostedModel]:
        """All models that are known here, whatever their state."""


async def follow_load(model: HostedModel, task: asyncio.Task[Any]) -> AsyncIterator[LoadProgress]:
    """Reports a load until its task ends: every state that it enters, and how it goes on in it.

    Raises:
        CallCancelledError: the task was cancelled, by an unload.
        Exception: whatever the task raised.
    """
    seen = len(model.states) - 1

    def news() -> Iterator[LoadProgress]:
        nonlocal seen
        states = model.states[seen:]
        seen += len(states) - 1  # the newest one comes again, with newer figures
        for state in states:
            yield LoadProgress(model, state, model.bytes_fetched, model.bytes_total)

    while not task.done():
        for progress in news():
            yield progress
        await asyncio.wait({task}, timeout=PROGRESS_SECONDS)
    if task.cancelled():
        raise CallCancelledError(f"model {model.model_id} was unloaded while it was loading")
    task.result()
    for progress in news():
        yield progress
