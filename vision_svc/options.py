"""The options of a call: their kinds, how they are parsed, and where in a call they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from shared.errors import OutOfRangeError, UnknownOptionError

Value: TypeAlias = int | float | str
Options: TypeAlias = Mapping[str, Value]

# Call metadata with this prefix are options; other metadata is ignored.
METADATA_PREFIX = "vision-"
FRAME_POLICY_KEY = "frame-policy"
FramePolicyName: TypeAlias = Literal["every", "latest"]

# More than any model has that callers name labels of.
MAX_LABELS = 200


@dataclass(frozen=True)
class Count:
    """A whole number from `minimum` to `maximum`."""

    name: str
    default: int
    maximum: int
    minimum: int = 1

    def parse(self, text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
        if not self.minimum <= value <= self.maximum:
            raise OutOfRangeError(
                f"option {self.name} must be a whole number from {self.minimum} to {self.maximum}, "
                f"not {text[:40]!r}",
                field=self.name,
            )
        return value


@dataclass(frozen=True)
class Number:
    """A number from `minimum` to `maximum`."""

    name: str
    default: float
    minimum: float
    maximum: float

    def parse(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not self.minimum <= value <= self.maximum:  # so is NaN
            raise OutOfRangeError(
                f"option {self.name} must be a number from {self.minimum:g} to {self.maximum:g}, "
                f"not {text[:40]!r}",
                field=self.name,
            )
        return value


@dataclass(frozen=True)
class Score(Number):
    """A threshold from 0 to 1."""

    minimum: float = 0.0
    maximum: float = 1.0


@dataclass(frozen=True)
class Choice:
    """One of several words; the first is the default."""

    name: str
    words: tuple[str, ...]

    @property
    def default(self) -> str:
        return self.words[0]

    def parse(self, text: str) -> str:
        word = text.strip().lower()
        if word not in self.words:
            raise UnknownOptionError(
                f"option {self.name} must be one of {', '.join(self.words)}, not {text[:40]!r}",
                field=self.name,
            )
        return word


@dataclass(frozen=True)
class Labels:
    """Names with commas between them, at most `MAX_LABELS`; none by default.

    Which names there are depends on the model, so the task checks them when it opens.
    """

    name: str
    default: str = ""

    def parse(self, text: str) -> str:
        words = label_names(text)
        if len(words) > MAX_LABELS:
            raise OutOfRangeError(
                f"option {self.name} names {len(words)} labels; at most {MAX_LABELS} are taken",
                field=self.name,
            )
        return ",".join(words)


def label_names(text: str) -> tuple[str, ...]:
    """The names in the text of a `Labels` option, without their spaces."""
    return tuple(word for word in map(str.strip, text.split(",")) if word)


@dataclass(frozen=True)
class Numbers:
    """Up to `most` different numbers from `minimum` to `maximum`, with commas between them."""

    name: str
    default: str
    minimum: float
    maximum: float
    most: int

    def parse(self, text: str) -> str:
        try:
            values = numbers(text[:1000])
        except ValueError:
            values = ()
        in_range = all(self.minimum <= value <= self.maximum for value in values)  # NaN is not
        if not values or not in_range or len(values) > self.most:
            raise OutOfRangeError(
                f"option {self.name} must be 1 to {self.most} numbers from {self.minimum:g} to "
                f"{self.maximum:g} with commas between them, not {text[:40]!r}",
                field=self.name,
            )
        return text[:1000]


def numbers(text: str) -> tuple[float, ...]:
    """The different numbers of an option of the kind `Numbers`."""
    return tuple(dict.fromkeys(float(part) for part in text.split(",")))


@dataclass(frozen=True)
class Ratio:
    """Two whole numbers from 1 to `MAX_RATIO_PART` with a colon between them, such as 9:16."""

    name: str
    default: str

    def parse(self, text: str) -> str:
        parts = [part.strip() for part in text[:20].split(":")]
        numbers = [int(part) for part in parts if part.isascii() and part.isdigit()]
        in_range = all(1 <= number <= MAX_RATIO_PART for number in numbers)
        if len(parts) != 2 or len(numbers) != 2 or not in_range:
            raise OutOfRangeError(
                f"option {self.name} must be two whole numbers from 1 to {MAX_RATIO_PART} with a "
                f"colon between them, such as {self.default}, not {text[:40]!r}",
                field=self.name,
            )
        return f"{numbers[0]}:{numbers[1]}"


MAX_RATIO_PART = 100

Option: TypeAlias = Count | Number | Choice | Labels | Numbers | Ratio


def parse_options(known: Sequence[Option], *sources: Mapping[str, str]) -> dict[str, Value]:
    """All options of a task by name. Each source overrides those before it, and the defaults.

    Raises:
        UnknownOptionError: the task has no such option, or a word is not among its choices.
        OutOfRangeError: a number is out of range.
    """
    by_name = {option.name: option for option in known}
    values: dict[str, Value] = {option.name: option.default for option in known}
    for source in sources:
        for key, text in source.items():
            option = by_name.get(key.strip().lower().replace("-", "_"))
            if option is None:
                raise UnknownOptionError(
                    f"option {key[:40]!r} is not known; it must be one of {', '.join(by_name)}",
                    field=key[:40],
                )
            values[option.name] = option.parse(text)
    return values


def options_of_call(metadata: Mapping[str, str]) -> dict[str, str]:
    """The options among a call's metadata, without their prefix."""
    return {
        key.removeprefix(METADATA_PREFIX): text
        for key, text in metadata.items()
        if key.startswith(METADATA_PREFIX)
    }


def frame_policy_of_call(metadata: Mapping[str, str]) -> FramePolicyName:
    """What to do with frames that arrive faster than they are answered.

    Raises:
        UnknownOptionError: it is neither "every" nor "latest".
    """
    word = Choice(FRAME_POLICY_KEY, ("every", "latest")).parse(
        metadata.get(FRAME_POLICY_KEY, "every")
    )
    return "latest" if word == "latest" else "every"
