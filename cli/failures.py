"""What goes wrong, as a sentence for a person and an exit code for a script.

The exit code of a call that fails is 10 and the number of its gRPC status, such as 15 for
NOT_FOUND. docs/cli.md has the table.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc
    from google.rpc import status_pb2

FAULT = 1
USAGE = 2
STATUS_BASE = 10
# As a shell has it for a process that a signal has ended: SIGINT and SIGPIPE.
STOPPED = 130
CLOSED_PIPE = 141

_REACHES_NOTHING = re.compile(r"failed to connect|errors resolving|DNS resolution failed")
# What gRPC puts before the cause.
_PREFIX = re.compile(
    r".*last error: |UNKNOWN: |ipv[46]:[\w.:%\[\]]+: |Failed to connect to remote host: "
)


class CliError(Exception):
    """A command cannot go on; the message is all that a person needs.

    Args:
        message: a sentence.
        exit_code: of the process.
    """

    def __init__(self, message: str, exit_code: int = USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Failure:
    """A failure as it is shown.

    Attributes:
        message: a sentence.
        exit_code: of the process.
        status: the name of the gRPC status; empty if no call has failed.
        reason: `ErrorInfo.reason`; empty if there is none.
        retry_seconds: after which a retry may help, if the service says so.
    """

    message: str
    exit_code: int
    status: str = ""
    reason: str = ""
    retry_seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"error": {name: value for name, value in asdict(self).items() if value}}

    def __str__(self) -> str:
        words = self.message
        if self.status:
            words = f"{self.reason or self.status}: {words}"
        if self.retry_seconds:
            words += f" (try again in {self.retry_seconds:g} s)"
        return words


def of_call(error: grpc.RpcError, address: str) -> Failure:
    """The failure of a call to `address`."""
    from google.rpc import error_details_pb2

    code, message = error.code(), error.details() or ""
    status = _status(error)
    reason, retry = "", None
    for detail in status.details:
        info, wait = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(wait):
            retry = wait.retry_delay.ToMilliseconds() / 1000
    if _REACHES_NOTHING.search(message):
        cause = _PREFIX.sub("", message)
        message = f"nothing answers at {address}: {cause}. `ml up` starts a stack"
    elif not status.details:
        message = f"{message} (from {address})"
    return Failure(message, STATUS_BASE + code.value[0], code.name, reason, retry)


def _status(error: grpc.RpcError) -> status_pb2.Status:
    """The details of an error; none if it has none."""
    from google.protobuf.message import DecodeError
    from google.rpc import status_pb2

    from shared.rpc.status import DETAILS_KEY

    status = status_pb2.Status()
    trailers: Any = error.trailing_metadata()
    for key, value in trailers or ():
        if key == DETAILS_KEY:
            with contextlib.suppress(DecodeError):
                status.ParseFromString(value)
    return status
