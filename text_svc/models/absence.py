"""Why a model cannot answer now, and whether it comes back by itself."""

from __future__ import annotations

from shared.errors import ModelNotLoadedError, ServiceError, WorkerUnavailableError
from shared.model_host import ModelState, Restore
from shared.model_ids import ModelId
from text_svc.models.model import ManagedModel

_LOADING = (ModelState.FETCHING, ModelState.CONVERTING, ModelState.LOADING)
# Shortest time after which a caller is told to come again.
MIN_RETRY_SECONDS = 1.0


def absence(
    model_id: ModelId, model: ManagedModel | None, restore: Restore | None, *, settled: bool = True
) -> ServiceError:
    """The error of a call to a model that is not ready.

    UNAVAILABLE with the time of the next try where the model comes back unasked; else
    FAILED_PRECONDITION, since somebody has to call LoadModel or waits for it already.

    Args:
        model_id: of the call.
        model: what is known of it here; None if nothing is.
        restore: what the control plane does to bring it back; None if it does nothing.
        settled: whether the control plane has told this replica what comes back, and admitted it.
            Calls come before where a proxy has not noticed a restart, or where the replica let
            itself in since the control plane was away.
    """
    if not settled and restore is None and (model is None or model.state in _LOADING):
        return WorkerUnavailableError(
            f"model {model_id} is not ready: the service has just started, and its models are "
            "being loaded again",
            retry_after=MIN_RETRY_SECONDS,
        )
    if model and model.state in _LOADING:
        state = model.state.name
        if restore or model.has_died:
            return WorkerUnavailableError(
                f"model {model_id} is being loaded again, its state is {state}"
            )
        return ModelNotLoadedError(f"model {model_id} is not ready, its state is {state}")
    if restore and restore.evicted:
        return ModelNotLoadedError(
            f"model {model_id} {restore.reason}; call LoadModel to load it again"
        )
    reason = (model.reason if model else "") or (restore.reason if restore else "")
    because = f": {reason}" if reason else ""
    if restore and restore.given_up:
        return ModelNotLoadedError(
            f"model {model_id} failed too often to be loaded again unasked{because}; "
            "call LoadModel to try again"
        )
    if restore or (model and model.has_died):
        wait = restore.wait_seconds if restore else 0.0
        when = f", in {wait:.0f} s" if wait >= MIN_RETRY_SECONDS else ""
        return WorkerUnavailableError(
            f"model {model_id} is about to be loaded again{when}{because}",
            retry_after=max(wait, MIN_RETRY_SECONDS),
        )
    if model is None:
        return ModelNotLoadedError(f"model {model_id} is not loaded; call LoadModel first")
    return ModelNotLoadedError(
        f"model {model_id} is not ready, its state is {model.state.name}{because}"
    )
