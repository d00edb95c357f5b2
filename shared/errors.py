"""Errors that callers see: each class has a gRPC status code and a stable reason.

Domain code raises these and knows nothing of gRPC calls; `shared.rpc.interceptors` turns them into
statuses. A message is one sentence for the caller: it names the field or the limit and never
contains a path of this machine or a stack trace.

The hierarchy, by status code:

* ServiceError
  x InvalidArgumentError (INVALID_ARGUMENT)
    - MissingFieldError
    - OutOfRangeError
    - InvalidModelIdError
    - InvalidPathError
    - UnknownPipelineError
    - UnknownOptionError
    - InvalidModelError
    - UnknownFormatError
    - UndecodableImageError
    - FrameSizeError
  x FailedPreconditionError (FAILED_PRECONDITION)
    - ModelNotLoadedError
    - PipelineMismatchError
  x NotFoundError (NOT_FOUND)
    - ModelNotFoundError
    - ModelFileNotFoundError
  x ResourceExhaustedError (RESOURCE_EXHAUSTED)
    - InputTooLargeError
    - QueueFullError
    - OutOfMemoryError
  x UnavailableError (UNAVAILABLE)
    - ProviderUnavailableError
    - WorkerUnavailableError
    - ShuttingDownError
  x DeadlineExceededError (DEADLINE_EXCEEDED)
  x CallCancelledError (CANCELLED)
  x NotImplementedRpcError (UNIMPLEMENTED)
  x InternalError (INTERNAL)
    - ProviderFaultError
"""

from __future__ import annotations

from typing import ClassVar

import grpc

from shared.text import cut

# ErrorInfo.domain of every error; together with `reason` it identifies an error for programs.
ERROR_DOMAIN = "ml.services"


class ServiceError(Exception):
    """Base of all errors that callers see. Raise a subclass.

    Args:
        message: a sentence for the caller.
        field: the invalid request field, for INVALID_ARGUMENT (`google.rpc.BadRequest`).
        retry_after: seconds after which a retry may help (`google.rpc.RetryInfo`).
        metadata: facts for programs, such as a limit (`google.rpc.ErrorInfo.metadata`).
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    # Default of `retry_after`.
    default_retry_after: ClassVar[float | None] = None

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        retry_after: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.message = cut(message)  # it may quote the caller, and is sent in one header
        super().__init__(self.message)
        self.field = field
        self.retry_after = self.default_retry_after if retry_after is None else retry_after
        self.metadata = metadata or {}


class InvalidArgumentError(ServiceError):
    """A field is missing, malformed or out of range, and no subclass fits."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"


class MissingFieldError(InvalidArgumentError):
    """A required field is empty."""

    reason = "MISSING_FIELD"


class OutOfRangeError(InvalidArgumentError):
    """A number is out of range; the message gives the range."""

    reason = "OUT_OF_RANGE"


class InvalidModelIdError(InvalidArgumentError):
    """A model id is not `org/name` or `name`."""

    reason = "INVALID_MODEL_ID"


class InvalidPathError(InvalidArgumentError):
    """A file path is absolute, leads out of the model's folder or has invalid characters."""

    reason = "INVALID_PATH"


class UnknownPipelineError(InvalidArgumentError):
    """The pipeline type is unknown or cannot be determined; the message lists the valid ones."""

    reason = "UNKNOWN_PIPELINE"


class UnknownOptionError(InvalidArgumentError):
    """An option or its value is not valid; the message lists what is."""

    reason = "UNKNOWN_OPTION"


class InvalidModelError(InvalidArgumentError):
    """The model's files cannot be loaded: no safetensors, corrupt, or with code of their own."""

    reason = "INVALID_MODEL"


class UnknownFormatError(InvalidArgumentError):
    """The format of the image or frame is not one of the accepted names."""

    reason = "UNKNOWN_FORMAT"


class UndecodableImageError(InvalidArgumentError):
    """The bytes are not an image of the given format."""

    reason = "UNDECODABLE_IMAGE"


class FrameSizeError(InvalidArgumentError):
    """The byte count does not match width and height, or one of these is not positive."""

    reason = "FRAME_SIZE_MISMATCH"


class FailedPreconditionError(ServiceError):
    """The system is not in the state that the call needs, and no subclass fits."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class ModelNotLoadedError(FailedPreconditionError):
    """The model is not loaded."""

    reason = "MODEL_NOT_LOADED"


class PipelineMismatchError(FailedPreconditionError):
    """The model is loaded with another type than the call needs, or its files are of another."""

    reason = "PIPELINE_MISMATCH"


class NotFoundError(ServiceError):
    """Something that the call names does not exist, and no subclass fits."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class ModelNotFoundError(NotFoundError):
    """The file provider has no such model."""

    reason = "MODEL_NOT_FOUND"


class ModelFileNotFoundError(NotFoundError):
    """The file provider has no such file."""

    reason = "FILE_NOT_FOUND"


class ResourceExhaustedError(ServiceError):
    """A limit was reached, and no subclass fits."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class InputTooLargeError(ResourceExhaustedError):
    """An image, text or message is over its limit; the message gives the limit."""

    reason = "INPUT_TOO_LARGE"


class QueueFullError(ResourceExhaustedError):
    """Too many calls are waiting or running; a later retry may succeed."""

    reason = "QUEUE_FULL"
    default_retry_after = 1.0


class OutOfMemoryError(ResourceExhaustedError):
    """The model does not fit into the memory budget, or its process went over its limit."""

    reason = "OUT_OF_MEMORY"


class UnavailableError(ServiceError):
    """Something that this service depends on is down; a retry is safe."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"
    default_retry_after = 1.0


class ProviderUnavailableError(UnavailableError):
    """The file provider cannot be reached, or the connection to it broke."""

    reason = "PROVIDER_UNAVAILABLE"


class WorkerUnavailableError(UnavailableError):
    """The process or service that runs the model is down."""

    reason = "WORKER_UNAVAILABLE"


class ShuttingDownError(UnavailableError):
    """The service is shutting down and accepts no new work."""

    reason = "SHUTTING_DOWN"


class DeadlineExceededError(ServiceError):
    """A time limit of this service passed before the work was done."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class CallCancelledError(ServiceError):
    """The work was cancelled, but not by the caller: by an unload, for example."""

    code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class NotImplementedRpcError(ServiceError):
    """An RPC that the model's process does not have."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "NOT_BUILT"


class InternalError(ServiceError):
    """A fault of this service, with a message that is safe to show."""


class ProviderFaultError(InternalError):
    """The file provider broke its contract: sizes, offsets or hashes contradict each other."""

    reason = "PROVIDER_FAULT"
