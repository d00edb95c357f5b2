"""Epochs: a replica obeys the newest control plane, and no earlier one that still acts."""

from __future__ import annotations

from shared.errors import FailedPreconditionError
from shared.rpc.interceptors import Context

# Metadata of a call, and of the error that refuses it.
EPOCH_KEY = "ml-epoch"
EPOCH_SEEN = "epoch"
# More digits are no epoch.
_MAX_DIGITS = 18


class Epochs:
    """The highest epoch that a replica has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def check(self, context: Context) -> None:
        """Notes the epoch of a call; one without an epoch, such as a person's, may pass.

        Raises:
            FailedPreconditionError: its epoch is below one that was seen.
        """
        for key, value in context.invocation_metadata() or ():
            text = str(value)
            if key == EPOCH_KEY and text.isdecimal() and len(text) <= _MAX_DIGITS:
                epoch = int(text)
                if epoch < self.seen:
                    raise FailedPreconditionError(
                        f"the call is of epoch {epoch}, and epoch {self.seen} has taken over",
                        metadata={EPOCH_SEEN: str(self.seen)},
                    )
                self.seen = epoch


def passed_by(error: Exception) -> int:
    """The epoch that has passed that of a call, from the error that refused it; 0 if none has."""
    if isinstance(error, FailedPreconditionError):
        text = error.metadata.get(EPOCH_SEEN, "")
        if text.isdecimal() and len(text) <= _MAX_DIGITS:
            return int(text)
    return 0
