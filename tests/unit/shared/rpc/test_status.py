"""An error of another service of this set arrives as the class that it was raised as."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import status_pb2

from shared import errors
from shared.errors import ServiceError
from shared.rpc.status import DETAILS_KEY, from_details, status_of

CLASSES = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, ServiceError) and each is not ServiceError
]


def failed_with(details: bytes | None, code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    trailing = [(DETAILS_KEY, details)] if details is not None else []
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), "text")


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_makes_the_way(kind: type[ServiceError]) -> None:
    sent = kind("a sentence", field="model_id", retry_after=2.5, metadata={"limit": "3"})
    received = from_details(failed_with(status_of(sent).SerializeToString(), kind.code))
    assert type(received) is kind
    assert (received.message, received.metadata) == ("a sentence", {"limit": "3"})
    assert received.retry_after == 2.5
    if kind.code is grpc.StatusCode.INVALID_ARGUMENT:
        assert received.field == "model_id"


def test_statuses_of_others_are_not_taken_for_ours() -> None:
    foreign = status_pb2.Status(code=5, message="not found").SerializeToString()
    assert from_details(failed_with(foreign, grpc.StatusCode.NOT_FOUND)) is None
    assert from_details(failed_with(None, grpc.StatusCode.NOT_FOUND)) is None
    assert from_details(failed_with(b"\xff not a message", grpc.StatusCode.NOT_FOUND)) is None


def test_a_reason_from_a_newer_service_is_not_guessed() -> None:
    status = status_of(errors.NotFoundError("gone"))
    status.details[0].value = status.details[0].value.replace(b"NOT_FOUND", b"NEW_THING")
    packed = status.SerializeToString()
    assert from_details(failed_with(packed, grpc.StatusCode.NOT_FOUND)) is None
