"""Sampling parameters: a request's, completed by the model's defaults."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from shared.errors import InputTooLargeError, InvalidArgumentError, OutOfRangeError
from text_svc.formats.json_files import GENERATION_CONFIG, read_json_object
from text_svc.worker.engines.forms import FIELD, Form

# For parameters that neither the request nor the model's generation_config sets.
DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 0.9
DEFAULT_NEW_TOKENS = 512

MAX_TEMPERATURE = 100.0
# Lower temperatures are greedy: only the likeliest token is left, and floats would overflow.
MIN_TEMPERATURE = 1e-4
MAX_TOP_K = 1_000_000
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 100.0
MAX_SEED = 2**64 - 1
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_PENALTY = 2.0
MAX_LOGIT_BIAS = 100.0
MAX_BIASED_TOKENS = 1024
MAX_TOP_LOGPROBS = 20
MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class OptionalSampling:
    """Parameters that not every engine has, by the names of the requests' fields.

    Attributes:
        min_p: tokens below this share of the likeliest one's probability are left out; 0 is off.
        presence_penalty: taken from the score of each token that was generated; 0 is off.
        frequency_penalty: the same, as many times as it was generated.
        min_tokens: an end token cannot come before this many tokens.
        ignore_eos: end tokens do not end the text.
        logit_bias: by token, added to its score.
        logprobs: whether tokens come with their log-probabilities.
        top_logprobs: and with those of so many of the likeliest ones.
        response_format: what the text must look like.
    """

    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: bool = False
    top_logprobs: int = 0
    response_format: Form | None = None

    @property
    def wanted(self) -> list[str]:
        """Those that this generation needs."""
        return [name for name in OPTIONAL if getattr(self, name)]


OPTIONAL = tuple(each.name for each in fields(OptionalSampling))


@dataclass(frozen=True)
class Sampling(OptionalSampling):
    """Checked parameters of one generation.

    Attributes:
        temperature: 0 is greedy.
        top_p: in (0, 1]; 1 is off.
        top_k: 0 is off.
        repetition_penalty: 1 is off.
        seed: None for a random one.
        stop: strings that end the generated text.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def in_form(self, form: Form) -> Sampling:
        """The same for a text that has a form.

        Raises:
            InvalidArgumentError, InputTooLargeError: as `Form.check`, or something here does not go
                with a form.
        """
        _check_form(self, form)
        return replace(self, response_format=form)


@dataclass(frozen=True)
class SamplingRequest(OptionalSampling):
    """What a caller asks for; None, and 0 new tokens, mean the default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    max_new_tokens: int = 0
    # The name of the field for the number of new tokens in the caller's message.
    max_new_tokens_field: str = "max_length"


@dataclass(frozen=True)
class SamplingDefaults:
    """The parameters in a model's generation_config.json; None for those that it does not set."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path, temperature: float | None = None) -> SamplingDefaults:
        """Reads the defaults from a model's folder, without the values that are out of range.

        Args:
            folder: of the model.
            temperature: comes before the model's own, if it is given.

        Raises:
            InvalidModelError: its generation_config.json is not a JSON object.
        """
        config = read_json_object(folder / GENERATION_CONFIG)

        def number(name: str, low: float, high: float) -> Any:
            value = config.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                return None
            return value if low <= value <= high else None

        return cls(
            number("temperature", 0, MAX_TEMPERATURE) if temperature is None else temperature,
            number("top_p", 0, 1),
            number("top_k", 0, MAX_TOP_K),
            number("repetition_penalty", MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY),
            number("max_new_tokens", 1, 2**31 - 1),
            _own_stops(config.get("stop_strings")),
        )

    def complete(self, request: SamplingRequest) -> Sampling:
        """Checks the parameters of a request and completes them with the defaults.

        Raises:
            OutOfRangeError: a number is not finite or is out of range.
            InvalidArgumentError: there are too many stop strings, or one is empty; or values
                contradict each other.
            InputTooLargeError: a stop string is too long.
        """
        field, new_tokens = request.max_new_tokens_field, request.max_new_tokens
        if new_tokens < 0:
            raise OutOfRangeError(
                f"{field} is {new_tokens}; it must be 0 (the default) or more", field=field
            )
        temperature = _first(request.temperature, self.temperature, DEFAULT_TEMPERATURE)
        temperature = _checked("temperature", temperature, 0, MAX_TEMPERATURE)
        top_p = _checked("top_p", _first(request.top_p, self.top_p, DEFAULT_TOP_P), 0, 1)
        top_k = _checked("top_k", _first(request.top_k, self.top_k, 0), 0, MAX_TOP_K)
        penalty = _checked(
            "repetition_penalty",
            _first(request.repetition_penalty, self.repetition_penalty, 1),
            MIN_REPETITION_PENALTY,
            MAX_REPETITION_PENALTY,
        )
        if request.seed is not None:
            _checked("seed", request.seed, 0, MAX_SEED)
        most = new_tokens or self.max_new_tokens or DEFAULT_NEW_TOKENS
        _check_optional(request, most)
        greedy = _single(temperature) < _single(MIN_TEMPERATURE) or not top_p or top_k == 1
        greedy = greedy or request.min_p == 1
        return Sampling(
            temperature=0 if greedy else temperature,
            top_p=1 if greedy else top_p,
            top_k=0 if greedy else int(top_k),
            repetition_penalty=penalty,
            seed=request.seed,
            # A form says itself where the answer ends.
            stop=_checked_stops(request.stop) + (() if request.response_format else self.stop),
            max_new_tokens=most,
            **{name: getattr(request, name) for name in OPTIONAL},
        )


def _check_optional(request: SamplingRequest, max_new_tokens: int) -> None:
    """Checks what most requests leave at their defaults."""
    if request.min_p:
        _checked("min_p", request.min_p, 0, 1)
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(request, name):
            _checked(name, getattr(request, name), -MAX_PENALTY, MAX_PENALTY)
    if request.min_tokens:
        _checked("min_tokens", request.min_tokens, 0, MAX_TOKENS)
        if request.min_tokens > max_new_tokens:
            raise InvalidArgumentError(
                f"min_tokens is {request.min_tokens}; it must be at most "
                f"{request.max_new_tokens_field}, which is {max_new_tokens}",
                field="min_tokens",
            )
    if request.logit_bias:
        _check_biases(request.logit_bias)
    if request.top_logprobs:
        _checked("top_logprobs", request.top_logprobs, 0, MAX_TOP_LOGPROBS)
        if not request.logprobs:
            raise InvalidArgumentError("top_logprobs needs logprobs", field="top_logprobs")
    if request.response_format:
        _check_form(request, request.response_format)


def _check_form(sampling: OptionalSampling, form: Form) -> None:
    for name in ("ignore_eos", "min_tokens"):
        if getattr(sampling, name):
            what = "calls that are forced say" if form.kind == "calls" else f"{FIELD} says"
            raise InvalidArgumentError(
                f"{name} cannot be used here: {what} where the answer ends", field=name
            )
    form.check()


def _check_biases(biases: Mapping[int, float]) -> None:
    if len(biases) > MAX_BIASED_TOKENS:
        raise InvalidArgumentError(
            f"logit_bias has {len(biases)} tokens; the limit is {MAX_BIASED_TOKENS}",
            field="logit_bias",
        )
    for token, bias in biases.items():
        _checked(f"logit_bias[{token}]", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _single(value: float) -> float:
    """The nearest float32: a caller's 0.01 is a little less than Python's."""
    return ctypes.c_float(value).value


def _checked(name: str, value: float, low: float, high: float) -> float:
    if not (math.isfinite(value) and _single(low) <= _single(value) <= _single(high)):
        raise OutOfRangeError(
            f"{name} is {value:g}; it must be from {low:g} to {high:g}", field=name
        )
    return value


def _own_stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        return ()
    return tuple(
        stop
        for stop in stops[:MAX_STOPS]
        if isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_CHARACTERS
    )


def _checked_stops(stops: Sequence[str]) -> tuple[str, ...]:
    if len(stops) > MAX_STOPS:
        raise InvalidArgumentError(
            f"the request has {len(stops)} stop strings; the limit is {MAX_STOPS}", field="stop"
        )
    for index, stop in enumerate(stops):
        if not stop:
            raise InvalidArgumentError(f"stop[{index}] is empty", field=f"stop[{index}]")
        if len(stop) > MAX_STOP_CHARACTERS:
            raise InputTooLargeError(
                f"stop[{index}] has {len(stop)} characters; the limit is {MAX_STOP_CHARACTERS}",
                metadata={"limit": str(MAX_STOP_CHARACTERS)},
            )
    return tuple(stops)
