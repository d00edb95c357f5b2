"""Judges a run from its log: which calls went wrong, and what was not well again.

An answer is right, or it is an error that the contract has (docs/api.md) and that a fault explains.
The rules below say which faults explain which errors. What no rule allows is a failure, and so is
each error while no fault was under way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from shared import errors
from tests.chaos.callers import ERROR, NEEDED, RIGHT
from tests.chaos.log import Event
from tests.chaos.models import WISHES


@dataclass
class Window:
    """The time from the beginning of a fault until all was well again and its visitor had left."""

    fault: Event
    begins: float
    calls_load: bool = False
    ends: float = math.inf

    @property
    def name(self) -> str:
        return str(self.fault["name"])

    @property
    def kind(self) -> str:
        return str(self.fault["kind"])

    @property
    def target(self) -> str:
        return str(self.fault["target"])

    def hits(self, call: Event) -> bool:
        """Whether a call was under way then."""
        return bool(call["began"] <= self.ends and call["began"] + call["seconds"] >= self.begins)


@dataclass(frozen=True)
class Rule:
    """Errors that are as they should be.

    Attributes:
        code: of the error.
        why: for people.
        allows: whether it holds for a call that was under way in the time of a fault.
    """

    code: str
    why: str
    allows: Callable[[Event, Window], bool]


_STAY = {wish.model_id for wish in WISHES}
_SERVICES = {"text_svc", "vision_svc", "model_mgmt_svc"}


def _of_passing_model(call: Event) -> bool:
    """About a model that comes and goes: what a call gets depends on whether it is there."""
    return bool(call["kind"].startswith(("guest", "visitor", "storm")))


def _is_load(call: Event) -> bool:
    return "load" in call["kind"].split()


def _may_load(call: Event, window: Window) -> bool:
    """A load, or a call that loads its model where calls do."""
    return _is_load(call) or (window.calls_load and _of_passing_model(call))


def _ends(call: Event, window: Window) -> bool:
    """Whether the fault ends a process, which may do without the call's."""
    return window.kind in (
        "kill",
        "stop and kill",
        "memory full",
        "record of desired models damaged",
    )


RULES = (
    Rule("UNAVAILABLE", "something is down, and a retry is safe", lambda call, window: True),
    Rule(
        "DEADLINE_EXCEEDED",
        "what the call waits for stands still",
        lambda call, window: window.kind.startswith(("stop", "provider s")),
    ),
    Rule(
        "RESOURCE_EXHAUSTED",
        "memory or a disk is full",
        lambda call, window: window.kind.startswith(("memory", "disk")),
    ),
    Rule(
        "FAILED_PRECONDITION",
        "a model that comes and goes is not loaded",
        lambda call, window: _of_passing_model(call) and not _is_load(call),
    ),
    Rule(
        "RESOURCE_EXHAUSTED",
        "the models that could make way are in use",
        lambda call, window: (
            call["reason"] == "OUT_OF_MEMORY"
            and _of_passing_model(call)
            and _may_load(call, window)
            and (window.kind == "storm" or window.fault["moment"] == "evicting")
        ),
    ),
    Rule(
        "FAILED_PRECONDITION",
        "with the record, a model that no replica holds is forgotten",
        lambda call, window: window.kind.startswith("record"),
    ),
    Rule(
        "CANCELLED",
        "a load was stopped by an unload",
        lambda call, window: _of_passing_model(call),
    ),
    Rule(
        "INTERNAL",
        "Envoy resets a response that has begun when its service dies",
        lambda call, window: call["begun"] and not call["reason"] and _ends(call, window),
    ),
    Rule(
        "INTERNAL",
        "the file provider breaks its contract",
        lambda call, window: call["reason"] == "PROVIDER_FAULT" and window.kind.startswith("prov"),
    ),
    Rule(
        "INTERNAL",
        "the process that a load needs was killed",
        lambda call, window: (
            _may_load(call, window)
            and _ends(call, window)
            and window.target in ("model process", "stepper", "conversion")
        ),
    ),
    Rule(
        "INVALID_ARGUMENT",
        "half of a model's files are of another version",
        lambda call, window: _is_load(call) and "other files" in window.kind,
    ),
)


def contract() -> dict[str, set[str]]:
    """The reasons of each code in the contract; an error of Envoy has none."""
    reasons: dict[str, set[str]] = {}
    for error in _classes(errors.ServiceError):
        reasons.setdefault(error.code.name, {""}).add(error.reason)
    return reasons


def _classes(base: type[errors.ServiceError]) -> Iterator[type[errors.ServiceError]]:
    yield base
    for each in base.__subclasses__():
        yield from _classes(each)


@dataclass
class Row:
    """All that happened in the times of one fault.

    Attributes:
        name: of the fault.
        times: how often it was caused.
        calls: that were under way.
        right, refused, wrong: how they went.
        seconds: to recover, of each time.
    """

    name: str
    times: int = 0
    calls: int = 0
    right: int = 0
    refused: int = 0
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)


@dataclass
class Verdict:
    """What a run has shown.

    Attributes:
        rows: of all faults, in the order of their first time.
        failures: a sentence for each thing that must not be.
        calls: by kind: how many were right, refused and wrong.
    """

    rows: list[Row]
    failures: list[str]
    calls: dict[str, dict[str, int]]


def judge(events: Iterable[Event], needed: Iterable[str] = NEEDED) -> Verdict:
    """Judges the events of a run."""
    events = list(events)
    windows = _windows(events)
    rows = {window.name: Row(window.name) for window in windows}
    for window in windows:
        rows[window.name].times += 1
    failures = [*_not_well(events)]
    kinds: dict[str, dict[str, int]] = {}
    absent: set[str] = set()  # models that come and go, whose last load was refused
    for call in (event for event in events if event["what"] == "call"):
        around = [window for window in windows if window.hits(call)]
        word, why = _judge_call(call, around, absent)
        if _of_passing_model(call) and _is_load(call):
            (absent.discard if word == "right" else absent.add)(call.get("model", ""))
        if word == "wrong":
            failures.append(_sentence(call, around, why))
        counts = kinds.setdefault(call["kind"], {"right": 0, "refused": 0, "wrong": 0})
        counts[word] += 1
        for row in {window.name: rows[window.name] for window in around}.values():
            row.calls += 1
            setattr(row, word, getattr(row, word) + 1)
    for event in events:
        if event["what"] == "fault" and event["phase"] == "well" and event["name"] in rows:
            rows[event["name"]].seconds.append(event["seconds"])
    failures += [
        f"no call of {kind} was answered right"
        for kind in needed
        if not kinds.get(kind, {}).get("right")
    ]
    return Verdict(list(rows.values()), failures, kinds)


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict on several runs."""
    rows: dict[str, Row] = {}
    failures: list[str] = []
    kinds: dict[str, dict[str, int]] = {}
    for verdict in verdicts:
        failures += verdict.failures
        for each in verdict.rows:
            row = rows.setdefault(each.name, Row(each.name))
            for name in ("times", "calls", "right", "refused", "wrong", "seconds"):
                setattr(row, name, getattr(row, name) + getattr(each, name))
        for kind, counts in verdict.calls.items():
            before = kinds.setdefault(kind, dict.fromkeys(counts, 0))
            for word, count in counts.items():
                before[word] += count
    return Verdict(list(rows.values()), failures, kinds)


def _windows(events: list[Event]) -> list[Window]:
    """The times of all faults; those that came together with another are over with the last."""
    windows: list[Window] = []
    calls_load = False
    for event in events:
        if event["what"] == "start":
            calls_load = event["calls_load"]
        if event["what"] != "fault":
            continue
        if event["phase"] == "begins":
            windows.append(Window(event, event["at"], calls_load=calls_load))
        elif event["phase"] == "over":
            for window in windows:
                window.ends = min(window.ends, event["at"])
    return windows


def _judge_call(call: Event, around: list[Window], absent: Container[str]) -> tuple[str, str]:
    """ "right", "refused" or "wrong", and why it is wrong."""
    if call["outcome"] == RIGHT:
        return "right", ""
    if call["outcome"] != ERROR:
        return "wrong", f"the answer is not right: {call['said'][:200]}"
    if call["reason"] not in contract().get(call["code"], ()):
        return "wrong", "the contract has no such error"
    if call["reason"] == "MODEL_NOT_LOADED" and not _is_load(call) and call.get("model") in absent:
        return "refused", ""
    if not around:
        return "wrong", "there was no fault"
    for rule in RULES:
        if rule.code == call["code"] and any(rule.allows(call, window) for window in around):
            return "refused", ""
    return "wrong", "no rule allows this error"


def _sentence(call: Event, around: list[Window], why: str) -> str:
    during = " and ".join(window.name for window in around) or "nothing"
    error = f" {call['code']} {call['reason']} {call['message']!r}" if "code" in call else ""
    return f"at {call['began']:.1f} s, {call['kind']}{error}, during {during}: {why}"


def _not_well(events: list[Event]) -> Iterator[str]:
    for event in events:
        if event["what"] == "fault" and event["phase"] == "not well":
            yield f"after {event['name']} not well in time: {', '.join(event['missing'])}"
        elif event["what"] == "fault" and event["phase"] == "missed":
            yield f"{event['name']} could not be caused: {event['why']}"
        elif event["what"] == "visitor":
            yield f"{event['model']} could not be done: {event['failed']}"
        elif event["what"] == "leftover":
            yield f"left over: {event['thing']}"


def median(values: list[float]) -> float:
    """The middle one."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


def summary(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON."""
    return {"failures": verdict.failures, "calls": verdict.calls}
