"""Statuses of other services as errors of this one."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from shared import errors
from shared.errors import ServiceError
from shared.rpc.interceptors import STATUS_DETAILS_KEY


def _subclasses(base: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for each in base.__subclasses__():
        yield each
        yield from _subclasses(each)


def from_details(error: grpc.aio.AioRpcError) -> ServiceError | None:
    """The error that a service of this set has raised, with its class; None if it was another's."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY:
            return from_packed(value if isinstance(value, bytes) else value.encode("latin-1"))
    return None


def from_packed(packed: bytes) -> ServiceError | None:
    """The same of a serialised `google.rpc.Status`."""
    try:
        status = status_pb2.Status.FromString(packed)
    except DecodeError:
        return None
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        _ = detail.Unpack(info) or detail.Unpack(bad) or detail.Unpack(retry)
    if info.domain != errors.ERROR_DOMAIN:
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
