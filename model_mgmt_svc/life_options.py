"""The options of LoadModel that are the control plane's own: how long a model stays in memory.

They are taken out before the others reach a replica, and changing them needs no reload.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from shared.errors import InvalidArgumentError, OutOfRangeError, UnknownOptionError
from shared.model_ids import ModelId, parse_model_id
from shared.pipelines import ServiceName

# "lru": taken out of memory for others, the least recently used first, and it stays desired;
# "none": never for others; "forget": as lru, and it is no longer desired then.
Evict = Literal["lru", "none", "forget"]

NEVER = -1.0
# Ten years.
MAX_KEEP_ALIVE_SECONDS = 315_360_000
MAX_PRIORITY = 1_000_000
MAX_ALIASES = 32


@dataclass(frozen=True)
class LifeOptions:
    """How long a model stays in memory, and its other names.

    Attributes:
        pin: it is never taken out of memory unasked, whatever the others say.
        keep_alive: seconds without a call in flight after which it is taken out of memory; 0 is at
            once after a call, -1 never, None as the setting says.
        evict: whether it may be taken out of memory to make room, and what follows, see `Evict`.
        priority: a model with a higher one stays longer than one with a lower one.
        aliases: other names that calls may use.
    """

    pin: bool = False
    keep_alive: float | None = None
    evict: Evict = "lru"
    priority: int = 0
    aliases: tuple[ModelId, ...] = ()

    @property
    def keep_alive_seconds(self) -> float:
        """`keep_alive`, with never for None; see `in_effect`."""
        return NEVER if self.keep_alive is None else self.keep_alive

    def as_options(self) -> dict[str, str]:
        """The options that differ from the defaults, as LoadModel takes them."""
        return self.changes_from(DEFAULT_LIFE)

    def changes_from(self, before: LifeOptions) -> dict[str, str]:
        """The options that differ from those before, as LoadModel takes them."""
        return {
            each.name: _text(getattr(self, each.name))
            for each in fields(self)
            if getattr(self, each.name) != getattr(before, each.name)
        }


DEFAULT_LIFE = LifeOptions()


@dataclass(frozen=True)
class LifeChange:
    """The options of life that a caller names, with their values; the others stay as they are."""

    values: Mapping[str, Any] = field(default_factory=dict)

    def of(self, life: LifeOptions) -> LifeOptions:
        """Options of life after this change."""
        return replace(life, **self.values)

    def and_then(self, later: LifeChange) -> LifeChange:
        """Both changes, the later one last."""
        return LifeChange({**self.values, **later.values})

    def check(self, model_id: ModelId, service: ServiceName) -> None:
        """Refuses what makes no sense for a model.

        A model of vision_svc replaces the one that its task comes with, and calls name no model:
        taken out of memory, it would silently change their answers.

        Raises:
            InvalidArgumentError: an alias is the model's own id, or the service's models do not
                have an option.
        """
        if model_id in self.values.get("aliases", ()):
            raise _invalid("aliases", f"has the model's own id, {model_id!r}")
        if service != "vision":
            return
        why = "for a model of vision_svc, which its task would miss"
        if self.values.get("keep_alive") not in (None, NEVER):
            raise _invalid("keep_alive", f"must be -1 {why}")
        if self.values.get("evict", "none") != "none":
            raise _invalid("evict", f"must be none {why}")
        if self.values.get("aliases"):
            raise _invalid("aliases", "must be empty for a model of vision_svc: no call names it")


NO_CHANGE = LifeChange()


def in_effect(life: LifeOptions, service: ServiceName, keep_alive: float) -> LifeOptions:
    """What holds for a model, with the default of `keep_alive`; see also `LifeChange.check`."""
    if service == "vision":
        return replace(life, keep_alive=NEVER, evict="none")
    return replace(life, keep_alive=keep_alive if life.keep_alive is None else life.keep_alive)


def split_life(options: Mapping[str, str]) -> tuple[LifeChange, dict[str, str]]:
    """The options of life among the options of a load, and the rest, which is for the replicas.

    An empty value is the default.

    Raises:
        UnknownOptionError: a value is none of those that the option may have.
        OutOfRangeError: a number is out of its range.
        InvalidModelIdError: an alias is not valid.
    """
    values = {
        name: parse(options[name].strip()) if options[name].strip() else _DEFAULTS[name]
        for name, parse in _PARSERS.items()
        if name in options
    }
    rest = {name: value for name, value in options.items() if name not in _PARSERS}
    return LifeChange(values), rest


def _pin(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise _unknown("pin", text, ("true", "false"))
    return text.lower() == "true"


def _keep_alive(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if seconds == NEVER or 0 <= seconds <= MAX_KEEP_ALIVE_SECONDS:
        return seconds
    raise _out_of_range(
        "keep_alive", text, f"-1 (never) or seconds from 0 to {MAX_KEEP_ALIVE_SECONDS}"
    )


def _evict(text: str) -> str:
    if text.lower() not in get_args(Evict):
        raise _unknown("evict", text, get_args(Evict))
    return text.lower()


def _priority(text: str) -> int:
    try:
        priority = int(text)
    except ValueError:
        priority = MAX_PRIORITY + 1
    if abs(priority) > MAX_PRIORITY:
        raise _out_of_range("priority", text, f"an integer from {-MAX_PRIORITY} to {MAX_PRIORITY}")
    return priority


def _aliases(text: str) -> tuple[ModelId, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    aliases = tuple(dict.fromkeys(parse_model_id(word, "options[aliases]") for word in words))
    if len(aliases) > MAX_ALIASES:
        raise _out_of_range("aliases", f"{len(aliases)} names", f"at most {MAX_ALIASES} names")
    return aliases


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "pin": _pin,
    "keep_alive": _keep_alive,
    "evict": _evict,
    "priority": _priority,
    "aliases": _aliases,
}
_DEFAULTS = {each.name: each.default for each in fields(LifeOptions)}
LIFE_OPTIONS = frozenset(_PARSERS)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:.15g}"
    return "" if value is None else str(value)


def _unknown(name: str, text: str, choices: tuple[str, ...]) -> UnknownOptionError:
    return UnknownOptionError(
        f"option {name} must be one of {', '.join(choices)}, not {text[:40]!r}",
        field=f"options[{name}]",
    )


def _out_of_range(name: str, text: str, needed: str) -> OutOfRangeError:
    return OutOfRangeError(
        f"option {name} must be {needed}, not {text[:40]!r}", field=f"options[{name}]"
    )


def _invalid(name: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"option {name} {why}", field=f"options[{name}]")
