"""The options of life are read, checked and changed in the control plane."""

from __future__ import annotations

import pytest

from model_mgmt_svc.life_options import (
    DEFAULT_LIFE,
    MAX_ALIASES,
    LifeOptions,
    in_effect,
    split_life,
)
from shared.errors import InvalidArgumentError
from shared.model_ids import ModelId

MODEL = ModelId("org/name")


def test_they_are_taken_out_of_the_options_of_a_load() -> None:
    options = {
        "dtype": "float32",
        "pin": "True",
        "keep_alive": "300",
        "evict": "forget",
        "priority": "-2",
        "aliases": "chat, models/org/other, chat",
    }
    change, rest = split_life(options)
    assert rest == {"dtype": "float32"}
    life = LifeOptions(True, 300.0, "forget", -2, (ModelId("chat"), ModelId("org/other")))
    assert change.of(DEFAULT_LIFE) == life
    assert split_life(life.as_options()) == (change, {})
    assert split_life({}) == (split_life({"dtype": "float32"})[0], {})
    assert DEFAULT_LIFE.as_options() == {}


def test_what_is_not_named_stays_and_an_empty_value_is_the_default() -> None:
    life = LifeOptions(pin=True, keep_alive=5.0, aliases=(ModelId("chat"),))
    change, _ = split_life({"aliases": "", "keep_alive": "", "priority": "7"})
    assert change.of(life) == LifeOptions(pin=True, priority=7)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pin", "yes", "option pin must be one of true, false, not 'yes'"),
        ("evict", "mru", "option evict must be one of lru, none, forget, not 'mru'"),
        ("keep_alive", "-2", r"option keep_alive must be -1 \(never\) or seconds from 0 to"),
        ("keep_alive", "nan", "keep_alive"),
        ("keep_alive", "inf", "keep_alive"),
        ("keep_alive", "5m", "keep_alive"),
        ("priority", "1.5", "option priority must be an integer from -1000000 to 1000000"),
        ("priority", "9" * 5000, "priority"),
        ("aliases", "../up", "aliases"),
        ("aliases", "a:b", "aliases"),
        ("aliases", ",".join(f"a{i}" for i in range(MAX_ALIASES + 1)), "at most 32 names"),
    ],
)
def test_what_is_not_valid_is_refused(name: str, value: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said) as error:
        split_life({name: value})
    assert error.value.field == f"options[{name}]"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep_alive": "0"}, "keep_alive must be -1"),
        ({"evict": "lru"}, "evict must be none"),
        ({"aliases": "face"}, "no call names it"),
    ],
)
def test_models_of_vision_never_leave_their_tasks(options: dict[str, str], said: str) -> None:
    change, _ = split_life(options)
    change.check(MODEL, "text")
    with pytest.raises(InvalidArgumentError, match=said):
        change.check(MODEL, "vision")
    allowed, _ = split_life({"keep_alive": "-1", "evict": "none", "pin": "true", "aliases": ""})
    allowed.check(MODEL, "vision")
    assert in_effect(LifeOptions(pin=True), "vision", 300) == LifeOptions(True, -1.0, "none")
    assert in_effect(LifeOptions(pin=True), "text", 300) == LifeOptions(True, 300)
    assert in_effect(LifeOptions(keep_alive=0.0), "text", 300) == LifeOptions(keep_alive=0)


def test_a_model_is_no_alias_of_itself() -> None:
    change, _ = split_life({"aliases": "other,org/name"})
    with pytest.raises(InvalidArgumentError, match="has the model's own id, 'org/name'"):
        change.check(MODEL, "text")
