"""Errors as HTTP statuses, and as the JSON that clients of OpenAI and of Anthropic expect."""

from __future__ import annotations

import math
from typing import Any, Protocol

from shared.errors import (
    CallCancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    InputTooLargeError,
    InvalidArgumentError,
    ModelNotLoadedError,
    NotFoundError,
    NotImplementedRpcError,
    OutOfMemoryError,
    ResourceExhaustedError,
    ServiceError,
    UnavailableError,
)

# The first class that an error is of says its status.
_STATUSES: tuple[tuple[type[ServiceError], int], ...] = (
    (InvalidArgumentError, 400),
    (ModelNotLoadedError, 404),
    (FailedPreconditionError, 400),
    (NotFoundError, 404),
    (InputTooLargeError, 413),
    (OutOfMemoryError, 503),
    (ResourceExhaustedError, 429),
    (UnavailableError, 503),
    (CallCancelledError, 503),
    (DeadlineExceededError, 504),
    (NotImplementedRpcError, 400),
)
# OpenAI's words for a status, and Anthropic's; others are `_OTHER`.
_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# OpenAI's own codes of reasons; the others are the reasons in lower case.
_CODES = {"MODEL_NOT_LOADED": "model_not_found", "MODEL_NOT_FOUND": "model_not_found"}


class NoRouteError(NotFoundError):
    """There is nothing at this path."""


class MethodError(InvalidArgumentError):
    """The path takes another method."""

    reason = "METHOD_NOT_ALLOWED"


class Dialect(Protocol):
    """How an error is written."""

    def __call__(self, error: ServiceError) -> dict[str, Any]: ...


def status(error: ServiceError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, MethodError):
        return 405
    return next((number for kind, number in _STATUSES if isinstance(error, kind)), 500)


def headers(error: ServiceError) -> list[tuple[bytes, bytes]]:
    """Headers of an error: when a retry may help, in whole seconds."""
    if error.retry_after is None and status(error) not in (429, 503):
        return []
    return [(b"retry-after", b"%d" % max(1, math.ceil(error.retry_after or 1)))]


def openai(error: ServiceError) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    return {
        "error": {
            "message": error.message,
            "type": _OPENAI_TYPES.get(status(error), "server_error"),
            "param": error.field,
            "code": _CODES.get(error.reason, error.reason.lower()),
        }
    }


def anthropic(error: ServiceError) -> dict[str, Any]:
    """An error as Anthropic writes it."""
    kind = _ANTHROPIC_TYPES.get(status(error), "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}
