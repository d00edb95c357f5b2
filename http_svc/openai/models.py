"""/v1/models."""

from __future__ import annotations

from typing import Any

from http_svc.answers import Answer, whole_json
from http_svc.services import Services
from ml import model_management_pb2 as mgmt
from shared.errors import ModelNotLoadedError


async def list_models(services: Services) -> Answer:
    """The models that are in memory, on their way there, or desired, with their aliases."""
    models = []
    for model in await services.models():
        models += [_model(model, name) for name in (model.model_id, *model.aliases)]
    return whole_json({"object": "list", "data": models})


async def get_model(name: str, services: Services) -> Answer:
    """One of them, by its id or an alias.

    Raises:
        ModelNotLoadedError: there is none.
    """
    for model in await services.models():
        if name in (model.model_id, *model.aliases):
            return whole_json(_model(model, name))
    raise ModelNotLoadedError(f"the model {name[:200]!r} is not loaded", field="model")


def _model(model: mgmt.ModelStatus, name: str) -> dict[str, Any]:
    organisation, slash, _ = model.model_id.partition("/")
    state = mgmt.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower()
    return {
        "id": name,
        "object": "model",
        "created": int(model.loaded_at),
        "owned_by": organisation if slash else "",
        "root": model.model_id,
        "pipeline_type": model.pipeline_type,
        "status": {"value": state, "reason": model.reason or None},
    }
