"""`ServiceError`s as gRPC statuses with details, and statuses of other services as errors again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from shared.errors import ERROR_DOMAIN, ServiceError

# The trailer with the serialised `google.rpc.Status`.
DETAILS_KEY = "grpc-status-details-bin"
# The status codes by their numbers on the wire.
CODES = {code.value[0]: code for code in grpc.StatusCode}


def status_of(error: ServiceError) -> status_pb2.Status:
    """An error as `google.rpc.Status` with ErrorInfo, and BadRequest or RetryInfo if they apply."""
    details: list[Any] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata
        )
    ]
    if error.code is grpc.StatusCode.INVALID_ARGUMENT and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        item = any_pb2.Any()
        item.Pack(detail)
        packed.append(item)
    return status_pb2.Status(code=error.code.value[0], message=error.message, details=packed)


def packed_details(error: grpc.aio.AioRpcError) -> bytes | None:
    """The serialised `google.rpc.Status` of a failed call, if it has one."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            return value if isinstance(value, bytes) else value.encode("latin-1")
    return None


def from_details(error: grpc.aio.AioRpcError) -> ServiceError | None:
    """The error that a service of this set raised, as its class; None if another server did."""
    packed = packed_details(error)
    return from_packed(packed) if packed is not None else None


def from_packed(packed: bytes) -> ServiceError | None:
    """The error in a serialised `google.rpc.Status`; None if it is not one of this set's."""
    try:
        status = status_pb2.Status.FromString(packed)
    except DecodeError:
        return None
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        _ = detail.Unpack(info) or detail.Unpack(bad) or detail.Unpack(retry)
    if info.domain != ERROR_DOMAIN:
        return None
    for each in _subclasses(ServiceError):
        if each.reason == info.reason and each.code.value[0] == status.code:
            return each(
                status.message,
                field=bad.field_violations[0].field if bad.field_violations else None,
                retry_after=retry.retry_delay.ToMilliseconds() / 1000 or None,
                metadata=dict(info.metadata),
            )
    return None


def _subclasses(base: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for each in base.__subclasses__():
        yield each
        yield from _subclasses(each)
