"""Names that a person may leave out or have completed: models, pipeline types."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cli.failures import CliError
from cli.session import PORT, Session, open_session

if TYPE_CHECKING:
    import grpc

    from ml.model_management_pb2 import ModelStatus

_COMPLETION_SECONDS = 2.0


def known_models(
    session: Session, channel: grpc.Channel, timeout: float | None = None
) -> list[ModelStatus]:
    """All models that the stack knows."""
    from ml import model_management_pb2, model_management_pb2_grpc

    stub = model_management_pb2_grpc.ModelManagementServiceStub(channel)
    request = model_management_pb2.ListModelsRequest()
    answer = stub.ListModels(request, metadata=session.metadata, timeout=timeout or session.timeout)
    return list(answer.models)


def chosen_model(session: Session, channel: grpc.Channel, named: str, rpc: str) -> str:
    """The model that is named, or else the one ready model that answers an RPC of text_svc.

    Args:
        session: how the stack is reached.
        channel: to it.
        named: an id; empty if none is named.
        rpc: of TransformersService; or the pipeline type that is needed.

    Raises:
        CliError: none is named, and none fits or more than one does.
    """
    if named:
        return named
    from ml import model_management_pb2 as pb
    from shared.pipelines import named_pipeline

    found: list[str] = [
        status.model_id
        for status in known_models(session, channel)
        if status.state == pb.MODEL_STATE_READY
        and (pipeline := named_pipeline(status.pipeline_type))
        and (rpc == pipeline.name or rpc in pipeline.calls)
    ]
    if not found:
        raise CliError(f"no loaded model is for {rpc}: load one with `ml load MODEL`")
    if len(found) > 1:
        raise CliError(f"several models are for {rpc}: -m must be one of {', '.join(found)}")
    return found[0]


def complete_model(incomplete: str) -> list[str]:
    """Ids of the models that the stack knows; none if it does not answer soon."""
    import grpc

    try:
        session = open_session(address=os.environ.get("ML_ADDRESS", f"localhost:{PORT}"))
        with session.channel() as channel:
            known = known_models(session, channel, _COMPLETION_SECONDS)
    except (CliError, grpc.RpcError):
        return []
    return [each.model_id for each in known if each.model_id.startswith(incomplete)]


def complete_type(incomplete: str) -> list[str]:
    """Pipeline types."""
    from shared.pipelines import PIPELINES

    return [each.name for each in PIPELINES if each.name.startswith(incomplete)]


def complete_task(incomplete: str) -> list[str]:
    """Tasks of vision."""
    from cli.tasks import TASKS

    return [name for name in TASKS if name.startswith(incomplete)]
