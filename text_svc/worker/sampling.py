"""How the next token is chosen: what a request asks for, completed by the model's defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.errors import OutOfRangeError

# Used where neither the request nor the model's generation_config says anything.
DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 0.9
DEFAULT_NEW_TOKENS = 512
MAX_TEMPERATURE = 100.0


@dataclass(frozen=True)
class Sampling:
    """Checked parameters of one generation. `temperature` 0 is greedy."""

    temperature: float
    top_p: float
    max_new_tokens: int


def _checked(name: str, value: float, high: float) -> float:
    if not (math.isfinite(value) and 0 <= value <= high):
        raise OutOfRangeError(f"{name} is {value:g}; it must lie in [0, {high:g}]", field=name)
    return value


@dataclass(frozen=True)
class SamplingDefaults:
    """What the model's own generation_config.json sets; None where it is silent."""

    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None

    def complete(self, temperature: float | None, top_p: float | None, max_length: int) -> Sampling:
        """The parameters of a request; None and 0 tokens stand for the default.

        Raises:
            OutOfRangeError: a number is not finite or out of its range.
        """
        if max_length < 0:
            raise OutOfRangeError(
                f"max_length is {max_length}; it must be 0 (default) or more", field="max_length"
            )
        if temperature is None:
            temperature = self.temperature
        if top_p is None:
            top_p = self.top_p
        temperature = _checked(
            "temperature",
            DEFAULT_TEMPERATURE if temperature is None else temperature,
            MAX_TEMPERATURE,
        )
        top_p = _checked("top_p", DEFAULT_TOP_P if top_p is None else top_p, 1)
        if not top_p:  # only the likeliest token is left
            temperature, top_p = 0, 1
        return Sampling(temperature, top_p, max_length or self.max_new_tokens or DEFAULT_NEW_TOKENS)
