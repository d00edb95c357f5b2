"""Models of strangers: made in the folder that a stack's file provider serves, and loaded there."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from ml import model_management_pb2 as pb
from ml import model_management_pb2_grpc, transformers_pb2, transformers_pb2_grpc
from tests.support.stack import MODELS, Stack

_CALL_SECONDS = 300


class Stranger:
    """An author of models, and a caller who loads them.

    Args:
        stack: whose file provider serves them.
        channel: to its Envoy.
        organisation: the first part of their ids.
    """

    def __init__(self, channel: grpc.Channel, organisation: str) -> None:
        self._manager = model_management_pb2_grpc.ModelManagementServiceStub(channel)
        self.text = transformers_pb2_grpc.TransformersServiceStub(channel)
        self.organisation = organisation

    def publish(self, name: str, make: Callable[[Path], Any]) -> str:
        """Makes a model's files in its folder; returns its id."""
        folder = MODELS / "text" / self.organisation / name
        folder.mkdir(parents=True)
        make(folder)
        return f"{self.organisation}/{name}"

    def load(self, model_id: str, pipeline: str, **options: str) -> pb.LoadModelResponse:
        """Loads a model; raises grpc.RpcError where it is refused."""
        request = pb.LoadModelRequest(model_id=model_id, pipeline_type=pipeline, options=options)
        return self._manager.LoadModel(request, timeout=_CALL_SECONDS)

    def refusal(self, model_id: str, pipeline: str, **options: str) -> str | None:
        """The message of a load that is refused as INVALID_ARGUMENT; None if it is not refused."""
        try:
            self.load(model_id, pipeline, **options)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            return str(error.details())
        return None

    def decoded(self, model_id: str, token: int) -> str | None:
        """The text of one token of a tokenizer; None if it has no such token."""
        ids = transformers_pb2.TokenIds(ids=[token])
        try:
            return self.infer(model_id, token_ids=ids).text
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            return None

    def unload(self, model_id: str) -> None:
        self._manager.UnloadModel(pb.UnloadModelRequest(model_id=model_id), timeout=_CALL_SECONDS)

    def infer(self, model_id: str, **request: Any) -> transformers_pb2.InferResponse:
        """The answer to an Infer call."""
        message = transformers_pb2.InferRequest(model=model_id, **request)
        return self.text.Infer(message, timeout=_CALL_SECONDS)


@contextlib.contextmanager
def stranger(stack: Stack) -> Iterator[Stranger]:
    """An author whose models are gone at the end."""
    organisation = f"stranger-{uuid.uuid4().hex[:8]}"
    with stack.channel() as channel:
        try:
            yield Stranger(channel, organisation)
        finally:
            shutil.rmtree(MODELS / "text" / organisation, ignore_errors=True)


def change_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file, which is made if there is none."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def safetensors(header: object, data: bytes = b"") -> bytes:
    """A file with this header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def no_weights(folder: Path) -> None:
    """Weights for a pipeline that needs none: an empty tensor."""
    header = {"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    (folder / "model.safetensors").write_bytes(safetensors(header))
