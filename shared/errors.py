"""Errors that callers see: each class is a status code and a stable reason.

Domain code raises these and knows nothing of gRPC calls; `shared.rpc.interceptors` turns them into
statuses. A message is one sentence for the caller: it names the field or the limit and never holds
a path of this machine or a stack trace.
"""

from __future__ import annotations

from typing import ClassVar

import grpc

# ErrorInfo.domain of every error; with `reason` it identifies an error for programs.
ERROR_DOMAIN = "ml.services"


class ServiceError(Exception):
    """Base of all errors with a status of their own. Raise a subclass.

    Args:
        message: a sentence for the caller.
        field: the request field at fault, for INVALID_ARGUMENT (`google.rpc.BadRequest`).
        retry_after: seconds after which trying again may help (`google.rpc.RetryInfo`).
        metadata: facts for programs, such as a limit (`google.rpc.ErrorInfo.metadata`).
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    # Seconds until a new try makes sense, unless the instance says otherwise.
    default_retry_after: ClassVar[float | None] = None

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        retry_after: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = self.default_retry_after if retry_after is None else retry_after
        self.metadata = metadata or {}


class InvalidArgumentError(ServiceError):
    """A field is missing, malformed or out of its range, and no narrower class says so."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"


class MissingFieldError(InvalidArgumentError):
    """A field that the call needs is empty."""

    reason = "MISSING_FIELD"


class OutOfRangeError(InvalidArgumentError):
    """A number lies outside what is accepted; the message tells the range."""

    reason = "OUT_OF_RANGE"


class InvalidModelIdError(InvalidArgumentError):
    """A model id is not `org/name` or `name`."""

    reason = "INVALID_MODEL_ID"


class InvalidPathError(InvalidArgumentError):
    """A file path is absolute, leaves the model's folder, or holds characters that no file has."""

    reason = "INVALID_PATH"


class UnknownPipelineError(InvalidArgumentError):
    """The pipeline type is not known, or none could be found; the message lists the known ones."""

    reason = "UNKNOWN_PIPELINE"


class UnknownOptionError(InvalidArgumentError):
    """An option's name is not known or its value does not parse; the message lists what is."""

    reason = "UNKNOWN_OPTION"


class InvalidModelError(InvalidArgumentError):
    """The model's files are not what can be loaded: no safetensors, corrupt, remote code."""

    reason = "INVALID_MODEL"


class UnknownFormatError(InvalidArgumentError):
    """The picture's or frame's format is not one of the accepted names."""

    reason = "UNKNOWN_FORMAT"


class UndecodableImageError(InvalidArgumentError):
    """The bytes are not a picture of the format that was said."""

    reason = "UNDECODABLE_IMAGE"


class FrameSizeError(InvalidArgumentError):
    """The byte count does not fit width and height, or a side is not positive."""

    reason = "FRAME_SIZE_MISMATCH"


class FailedPreconditionError(ServiceError):
    """The system is not in the state that the call needs, and no narrower class says so."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class ModelNotLoadedError(FailedPreconditionError):
    """The call names a model that is not in memory."""

    reason = "MODEL_NOT_LOADED"


class PipelineMismatchError(FailedPreconditionError):
    """The model is loaded with another pipeline type than the call needs."""

    reason = "PIPELINE_MISMATCH"


class NotFoundError(ServiceError):
    """A thing that the call names does not exist, and no narrower class says so."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class ModelNotFoundError(NotFoundError):
    """The file provider has no such model."""

    reason = "MODEL_NOT_FOUND"


class ModelFileNotFoundError(NotFoundError):
    """The file provider has no such file."""

    reason = "FILE_NOT_FOUND"


class ResourceExhaustedError(ServiceError):
    """A limit was reached, and no narrower class says so."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class InputTooLargeError(ResourceExhaustedError):
    """A picture, text or message is over its limit; the message tells the limit."""

    reason = "INPUT_TOO_LARGE"


class QueueFullError(ResourceExhaustedError):
    """Too many calls wait or run; trying again later helps."""

    reason = "QUEUE_FULL"
    default_retry_after = 1.0


class OutOfMemoryError(ResourceExhaustedError):
    """The model does not fit into the memory budget; nothing was read into memory."""

    reason = "OUT_OF_MEMORY"


class UnavailableError(ServiceError):
    """Something this service depends on is down; trying again is safe."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"
    default_retry_after = 1.0


class ProviderUnavailableError(UnavailableError):
    """The file provider cannot be reached, or went away half-way."""

    reason = "PROVIDER_UNAVAILABLE"


class WorkerUnavailableError(UnavailableError):
    """The process or service that runs the model is down or went away."""

    reason = "WORKER_UNAVAILABLE"


class ShuttingDownError(UnavailableError):
    """The service is stopping and takes no new work."""

    reason = "SHUTTING_DOWN"


class DeadlineExceededError(ServiceError):
    """A time limit of this side passed before the work was done."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class CallCancelledError(ServiceError):
    """The work was cancelled by somebody else than the caller, such as an unload."""

    code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class NotImplementedRpcError(ServiceError):
    """An RPC of the contract that is not built; the message says why."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "NOT_BUILT"


class InternalError(ServiceError):
    """A fault of this side with a sentence that is safe to show."""


class ProviderFaultError(InternalError):
    """The file provider broke its contract: sizes, offsets or hashes do not agree."""

    reason = "PROVIDER_FAULT"
