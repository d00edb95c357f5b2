"""Parameters of generations that several endpoints have."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from http_svc.bodies import Body, Items
from ml import transformers_pb2 as pb

INT32 = 2**31 - 1
# Seeds are signed here and unsigned in the services.
_SEEDS = 2**64

NewTokens = Annotated[int, Field(ge=1, le=INT32)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


# One string or several.
Strings = Annotated[Items[str], BeforeValidator(_as_list)]


class Sampling(Body):
    """How tokens are chosen; None is the model's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, ge=-1, le=INT32)
    repetition_penalty: float | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Strings | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    min_p: float | None = None
    logit_bias: dict[Annotated[int, Field(ge=0, le=INT32)], float] | None = None

    def put(self, request: pb.ChatRequest | pb.TextRequest) -> None:
        """Sets the fields of a request."""
        if self.temperature is not None:
            request.temperature = self.temperature
        if self.top_p is not None:
            request.top_p = self.top_p
        if self.top_k is not None:
            request.top_k = max(self.top_k, 0)  # -1 is off at other servers
        if self.repetition_penalty is not None:
            request.repetition_penalty = self.repetition_penalty
        if self.seed is not None:
            request.seed = self.seed % _SEEDS
        request.stop.extend(self.stop or ())
        # An engine that does not have these refuses them; 0 is off, as absent.
        if self.frequency_penalty:
            request.frequency_penalty = self.frequency_penalty
        if self.presence_penalty:
            request.presence_penalty = self.presence_penalty
        if self.min_p:
            request.min_p = self.min_p
        request.logit_bias.update(self.logit_bias or {})
