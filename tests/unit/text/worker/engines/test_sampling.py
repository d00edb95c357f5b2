import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml import transformers_pb2 as pb
from shared.errors import (
    InputTooLargeError,
    InvalidArgumentError,
    InvalidModelError,
    OutOfRangeError,
)
from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.sampling import (
    MAX_REPETITION_PENALTY,
    MAX_STOPS,
    MAX_TEMPERATURE,
    MIN_REPETITION_PENALTY,
    Sampling,
    SamplingDefaults,
    SamplingRequest,
)


def complete(defaults: SamplingDefaults | None = None, **wanted: Any) -> Sampling:
    return (defaults or SamplingDefaults()).complete(SamplingRequest(**wanted))


def test_where_nobody_says_anything_the_defaults_of_the_service_hold() -> None:
    assert complete() == Sampling(temperature=0.7, top_p=0.9, max_new_tokens=512)


def test_the_model_s_own_defaults_come_before_the_service_s() -> None:
    own = SamplingDefaults(0.3, 0.5, 20, 1.2, 99)
    assert complete(own) == Sampling(0.3, 0.5, 99, 20, 1.2)


def test_what_a_caller_says_comes_first() -> None:
    own = SamplingDefaults(0.3, 0.5, 20, 1.2, 99)
    said = complete(
        own, temperature=1.5, top_p=1.0, top_k=0, repetition_penalty=1.0, max_new_tokens=3, seed=0
    )
    assert said == Sampling(1.5, 1.0, 3, 0, 1.0, seed=0)


@pytest.mark.parametrize(
    "greedy", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_k": 1}, {"min_p": 1.0}]
)
def test_what_leaves_one_token_is_greedy(greedy: dict[str, Any]) -> None:
    sampling = complete(**greedy)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 1, 0)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, -math.inf, 1e9])
@pytest.mark.parametrize("name", ["temperature", "top_p", "repetition_penalty"])
def test_a_number_out_of_its_range_is_refused_with_the_range(name: str, value: float) -> None:
    with pytest.raises(OutOfRangeError, match=rf"{name} is .* must be from ") as caught:
        complete(**{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("name", "bounds"),
    {
        "temperature": (0.0, MAX_TEMPERATURE),
        "top_p": (0.0, 1.0),
        "repetition_penalty": (MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY),
    }.items(),
)
@pytest.mark.parametrize("request_type", [pb.TextRequest, pb.ChatRequest])
def test_both_bounds_are_in_the_range_as_the_wire_s_float32(
    request_type: Any, name: str, bounds: tuple[float, float]
) -> None:
    for bound in bounds:
        sent = request_type.FromString(request_type(**{name: bound}).SerializeToString())
        value = getattr(sent, name)
        assert value == pytest.approx(bound)
        complete(**{name: value})
    below = np.nextafter(np.float32(bounds[0]), np.float32(-1))
    above = np.nextafter(np.float32(bounds[1]), np.float32(200))
    for outside in (below, above):
        with pytest.raises(OutOfRangeError):
            complete(**{name: float(outside)})


def test_every_float_field_of_a_request_has_its_bounds_tested() -> None:
    fields = {
        field.name
        for message in (pb.TextRequest, pb.ChatRequest)
        for field in message.DESCRIPTOR.fields
        if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE)
    }
    assert fields == {
        *("temperature", "top_p", "repetition_penalty"),
        *("min_p", "presence_penalty", "frequency_penalty"),
    }


@pytest.mark.parametrize(
    ("name", "value"), [("top_k", -1), ("top_k", 2**31 - 1), ("seed", -1), ("max_new_tokens", -5)]
)
def test_a_whole_number_out_of_its_range_is_refused(name: str, value: int) -> None:
    with pytest.raises(OutOfRangeError):
        complete(**{name: value})


def test_stop_strings_have_limits() -> None:
    assert complete(stop=["a"] * MAX_STOPS).stop == ("a",) * MAX_STOPS
    with pytest.raises(InvalidArgumentError, match="limit is 16"):
        complete(stop=["a"] * (MAX_STOPS + 1))
    with pytest.raises(InvalidArgumentError, match=r"stop\[1\] is empty"):
        complete(stop=["a", ""])
    with pytest.raises(InputTooLargeError, match="limit is 256"):
        complete(stop=["a" * 257])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, SamplingDefaults()),
        ({"temperature": 0.2, "top_k": 5}, SamplingDefaults(temperature=0.2, top_k=5)),
        ({"temperature": None, "top_p": "high", "top_k": True}, SamplingDefaults()),
        ({"temperature": -3, "top_p": 7, "repetition_penalty": 0}, SamplingDefaults()),
    ],
)
def test_defaults_are_read_from_the_model_where_they_make_sense(
    tmp_path: Path, content: Any, expected: SamplingDefaults
) -> None:
    if content is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert SamplingDefaults.read(tmp_path) == expected


def test_a_load_option_comes_before_the_model_s_temperature(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    assert complete(SamplingDefaults.read(tmp_path)).temperature == 0.6
    assert complete(SamplingDefaults.read(tmp_path, 0.0)).temperature == 0
    assert complete(SamplingDefaults.read(tmp_path, 0.0), temperature=0.9).temperature == 0.9


def test_a_broken_generation_config_is_said(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(InvalidModelError, match=r"generation_config\.json is not valid JSON"):
        SamplingDefaults.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_p", 1.1),
        ("min_p", math.nan),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("min_tokens", -1),
        ("top_logprobs", 21),
        ("top_logprobs", -1),
        ("logit_bias", {7: 101.0}),
        ("logit_bias", {7: math.nan}),
    ],
)
def test_an_option_out_of_its_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(OutOfRangeError, match=rf"{name}.* must be from "):
        complete(**{name: value, "logprobs": True})


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="top_logprobs needs logprobs"):
        complete(top_logprobs=1)
    with pytest.raises(InvalidArgumentError, match="it must be at most max_length, which is 8"):
        complete(min_tokens=9, max_new_tokens=8)
    with pytest.raises(InvalidArgumentError, match="has 1025 tokens; the limit is 1024"):
        complete(logit_bias=dict.fromkeys(range(1025), 1.0))
    form = Form("regex", "a")
    for name in ("ignore_eos", "min_tokens"):
        with pytest.raises(
            InvalidArgumentError, match=f"{name} cannot be used here: response_format"
        ):
            complete(response_format=form, **{name: 1})


def test_the_models_own_stop_strings_do_not_end_an_answer_in_a_form() -> None:
    defaults = SamplingDefaults(stop=("}",))
    form = Form("regex", "a+")
    assert defaults.complete(SamplingRequest(stop=["b"])).stop == ("b", "}")
    assert defaults.complete(SamplingRequest(stop=["b"], response_format=form)).stop == ("b",)
