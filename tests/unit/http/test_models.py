"""/v1/models."""

from __future__ import annotations

from ml import model_management_pb2 as mgmt
from tests.unit.http.conftest import Door


async def test_models_with_their_states_and_aliases(door: Door) -> None:
    door.script.models = [
        mgmt.ModelStatus(
            model_id="org/tiny",
            pipeline_type="text-generation",
            state=mgmt.MODEL_STATE_READY,
            loaded_at=1_700_000_000,
            aliases=["gpt"],
        ),
        mgmt.ModelStatus(model_id="alone", state=mgmt.MODEL_STATE_FAILED, reason="it broke"),
    ]
    answer = (await door.client.get("/v1/models")).json()
    assert answer["object"] == "list"
    tiny, alias, alone = answer["data"]
    assert tiny == {
        "id": "org/tiny",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "org",
        "root": "org/tiny",
        "pipeline_type": "text-generation",
        "status": {"value": "ready", "reason": None},
    }
    assert alias == tiny | {"id": "gpt"}
    assert alone["status"] == {"value": "failed", "reason": "it broke"}
    for path, expected in (("org/tiny", tiny), ("org%2Ftiny", tiny), ("gpt", alias)):
        assert (await door.client.get(f"/v1/models/{path}")).json() == expected
    answer = await door.client.get("/v1/models/org/other")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
