"""The options of a call: their kinds, how they are parsed, and where in a call they are."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from shared.errors import InvalidArgumentError, OutOfRangeError, UnknownOptionError

Value: TypeAlias = int | float | str | bytes
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


@dataclass(frozen=True)
class Binary:
    """Bytes in base64 or in hexadecimal digits, at most `maximum` of them; by default none.

    What is both counts as base64, unless it begins with one of `hex_prefixes`.
    """

    name: str
    maximum: int
    hex_prefixes: tuple[str, ...]

    @property
    def default(self) -> bytes:
        return b""

    def parse(self, text: str) -> bytes:
        text = text.strip()
        if len(text) > 2 * self.maximum:
            raise OutOfRangeError(
                f"option {self.name} must be at most {self.maximum} bytes", field=self.name
            )
        try:
            if text.startswith(self.hex_prefixes):
                return bytes.fromhex(text)
            standard = text.rstrip("=").replace("-", "+").replace("_", "/")
            return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
        except (ValueError, binascii.Error):
            raise InvalidArgumentError(
                f"option {self.name} must be bytes in base64 or hexadecimal digits, "
                f"not {text[:40]!r}",
                field=self.name,
            ) from None


Option: TypeAlias = Count | Number | Choice | Labels | Numbers | Ratio | Binary

# Options of every stream, whatever its task. Configuration records of H.264 and HEVC begin with the
# byte 01, those of AV1 with 81, and Annex B with 00: none of these begins so in base64.
STREAM_OPTIONS: tuple[Option, ...] = (
    Choice("on_bad_frame", ("error", "skip")),
    Binary("extradata", 64 << 10, ("00", "01", "81")),
    Count("idle_seconds", 0, 3600),
)


@dataclass(frozen=True)
class StreamOptions:
    """The values of `STREAM_OPTIONS`.

    Attributes:
        skips_bad: whether a frame that cannot be decoded is skipped; else it ends the stream.
        extradata: the configuration record of the stream's video, or empty.
        idle_seconds: how long the stream may be silent; 0 is the service's setting.
    """

    skips_bad: bool = False
    extradata: bytes = b""
    idle_seconds: int = 0


def split_options(values: Mapping[str, Value]) -> tuple[Options, StreamOptions]:
    """The options of a stream's task, and those of the stream itself."""
    names = {option.name for option in STREAM_OPTIONS}
    task = {name: value for name, value in values.items() if name not in names}
    extradata, idle = values["extradata"], values["idle_seconds"]
    assert isinstance(extradata, bytes)
    assert isinstance(idle, int)
    return task, StreamOptions(values["on_bad_frame"] == "skip", extradata, idle)


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
