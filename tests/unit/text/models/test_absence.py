"""What a call to a model that is not ready is told."""

from __future__ import annotations

import pytest

from shared.errors import ModelNotLoadedError, WorkerUnavailableError
from shared.model_host import ModelState, Restore, Restores
from shared.model_ids import ModelId
from shared.pipelines import TEXT_GENERATION
from text_svc.models.absence import absence
from text_svc.models.model import ManagedModel
from text_svc.options import LoadOptions

NAME = ModelId("org/name")
PLANNED = Restore(NAME)
WAITS = Restore(NAME, wait_seconds=12.0, reason="told reason")
GIVEN_UP = Restore(NAME, given_up=True, reason="told reason")
EVICTED = Restore(NAME, reason="was evicted to make room for a", evicted=True)


def model(state: ModelState, *, again: bool = False, **fields: object) -> ManagedModel:
    made = ManagedModel(NAME, TEXT_GENERATION, options=LoadOptions(), again=again, **fields)  # type: ignore[arg-type]
    made.state = state
    return made


DIED = model(ModelState.FAILED, loaded_at=7, reason="its process ended")
BROKEN = model(ModelState.FAILED, reason="no weights")


@pytest.mark.parametrize(
    ("known", "restore", "said"),
    [
        (None, None, "is not loaded; call LoadModel first"),
        (model(ModelState.FETCHING), None, "is not ready, its state is FETCHING"),
        (model(ModelState.UNLOADING), None, "is not ready, its state is UNLOADING"),
        (BROKEN, None, "is not ready, its state is FAILED: no weights"),
        (DIED, GIVEN_UP, "again unasked: its process ended; call LoadModel to try again"),
        (None, GIVEN_UP, "again unasked: told reason; call LoadModel to try again"),
        (None, EVICTED, "was evicted to make room for a; call LoadModel to load it again"),
        (
            model(ModelState.UNLOADING),
            EVICTED,
            "was evicted to make room for a; call LoadModel to load it again",
        ),
    ],
)
def test_who_has_to_load_it_is_told_so(
    known: ManagedModel | None, restore: Restore | None, said: str
) -> None:
    error = absence(NAME, known, restore)
    assert isinstance(error, ModelNotLoadedError)
    assert error.message.endswith(said)


@pytest.mark.parametrize(
    ("known", "restore", "said", "retry"),
    [
        (DIED, None, "about to be loaded again: its process ended", 1.0),
        (DIED, WAITS, "about to be loaded again, in 12 s: its process ended", 12.0),
        (BROKEN, WAITS, "about to be loaded again, in 12 s: no weights", 12.0),
        (None, PLANNED, "about to be loaded again", 1.0),
        (None, WAITS, "about to be loaded again, in 12 s: told reason", 12.0),
        (model(ModelState.LOADING), PLANNED, "being loaded again, its state is LOADING", 1.0),
        (
            model(ModelState.FETCHING, again=True),
            None,
            "being loaded again, its state is FETCHING",
            1.0,
        ),
    ],
)
def test_a_model_that_comes_back_says_when(
    known: ManagedModel | None, restore: Restore | None, said: str, retry: float
) -> None:
    error = absence(NAME, known, restore)
    assert isinstance(error, WorkerUnavailableError)
    assert error.message.endswith(said)
    assert error.retry_after == retry


def test_the_time_until_the_next_try_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("shared.model_host.time.monotonic", lambda: now)
    restores = Restores()
    restores.replace([WAITS])
    assert restores.get(NAME) == WAITS
    for passed, left in ((5.0, 7.0), (20.0, 0.0)):
        now = 100.0 + passed
        restore = restores.get(NAME)
        assert restore
        assert restore.wait_seconds == left
    restores.replace([])
    assert restores.get(NAME) is None


@pytest.mark.parametrize("known", [None, model(ModelState.LOADING)])
def test_a_service_that_has_just_started_does_not_know_yet(known: ManagedModel | None) -> None:
    error = absence(NAME, known, None, settled=False)
    assert isinstance(error, WorkerUnavailableError)
    assert "has just started" in error.message
