"""The schedule follows from its seed, and the checker lets nothing through that no rule allows."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.chaos.callers import NEEDED
from tests.chaos.checker import Verdict, contract, judge, together
from tests.chaos.faults import KINDS, Faults
from tests.chaos.log import Event
from tests.chaos.report import table
from tests.chaos.schedule import MOMENTS, SHORT, Fault, all_faults, schedule


def test_the_same_seed_gives_the_same_schedule() -> None:
    count = 2 * len(all_faults())
    first = list(itertools.islice(schedule(7), count))
    assert first == list(itertools.islice(schedule(7), count))
    assert first != list(itertools.islice(schedule(8), count))


def test_each_fault_comes_once_before_any_comes_again() -> None:
    names = [fault.name for fault in itertools.islice(schedule(3), len(all_faults()))]
    assert sorted(names) == sorted(fault.name for fault in all_faults())
    assert len(set(names)) == len(names)


def test_every_fault_of_a_schedule_can_be_caused() -> None:
    for fault in (*all_faults(), *SHORT):
        assert fault.kind in KINDS
        assert not fault.moment or fault.moment in MOMENTS
        assert fault.moment in ("", "generating") or fault.moment in Faults._at
    assert {fault.name for fault in SHORT} <= {fault.name for fault in all_faults()}


def fault(number: int, at: float, phase: str, of: Fault, **more: Any) -> Event:
    return {"what": "fault", "number": number, "phase": phase, "at": at, **of.fields(), **more}


def call(began: float, outcome: str = "error", **more: Any) -> Event:
    usual = {"kind": "chat", "seconds": 1.0, "begun": False, "said": "", "reason": ""}
    return {"what": "call", "at": began + 1, "began": began, "outcome": outcome, **usual, **more}


KILL, STOP = Fault("kill", "text_svc"), Fault("stop and go on", "text_svc")
LIE = Fault("provider lies", moment="arriving", value="bytes")


def judged(of: Fault, *calls: Event) -> Verdict:
    """The verdict on calls, with a fault from 10 s on that is recovered from at 20 s."""
    begins, well = fault(1, 10, "begins", of), fault(1, 20, "well", of, seconds=8.0)
    return judge([begins, *calls, well, fault(1, 20, "over", of)], needed=())


def test_right_answers_are_right_at_any_time() -> None:
    verdict = judged(KILL, call(1, "right"), call(12, "right"))
    assert verdict.failures == []
    assert verdict.calls == {"chat": {"right": 2, "refused": 0, "wrong": 0}}
    (row,) = verdict.rows
    assert (row.times, row.calls, row.right, row.seconds) == (1, 1, 1, [8.0])
    assert "| kill text_svc | 1 | 1 | 1 | 0 | 0 | 8.0 | 8.0 |" in table(verdict)


@pytest.mark.parametrize(
    ("of", "failed"),
    [
        (KILL, call(12, code="UNAVAILABLE")),
        (KILL, call(9.5, code="UNAVAILABLE")),  # it was under way when the fault came
        (KILL, call(12, code="UNAVAILABLE", reason="WORKER_UNAVAILABLE")),
        (KILL, call(12, code="INTERNAL", begun=True)),
        (STOP, call(12, code="DEADLINE_EXCEEDED")),
        (LIE, call(12, kind="visitor load", code="INTERNAL", reason="PROVIDER_FAULT")),
        (KILL, call(12, kind="guest embed", code="FAILED_PRECONDITION", reason="MODEL_NOT_LOADED")),
    ],
)
def test_errors_that_a_fault_explains_are_refusals(of: Fault, failed: Event) -> None:
    failed |= {"message": ""}
    verdict = judged(of, failed)
    assert verdict.failures == []
    assert verdict.rows[0].refused == 1


@pytest.mark.parametrize(
    ("of", "failed"),
    [
        (KILL, call(1, code="UNAVAILABLE")),  # before any fault
        (KILL, call(25, code="UNAVAILABLE")),  # when all was well again
        (KILL, call(12, "wrong")),
        (KILL, call(12, code="UNKNOWN")),
        (KILL, call(12, code="INTERNAL")),  # no message had come
        (KILL, call(12, code="INTERNAL", reason="INTERNAL", begun=True)),  # by a service
        (KILL, call(12, code="UNAVAILABLE", reason="NO_SUCH_REASON")),
        (KILL, call(12, code="DEADLINE_EXCEEDED")),  # it hangs
        (KILL, call(12, code="FAILED_PRECONDITION", reason="MODEL_NOT_LOADED")),
        (KILL, call(12, code="INVALID_ARGUMENT", reason="INVALID_MODEL")),
        (KILL, call(12, code="RESOURCE_EXHAUSTED", reason="QUEUE_FULL")),
    ],
)
def test_all_else_is_a_failure(of: Fault, failed: Event) -> None:
    failed |= {"message": "as it is"}
    verdict = judged(of, failed)
    assert len(verdict.failures) == 1
    assert verdict.calls["chat"]["wrong"] == 1


def test_a_model_whose_load_was_refused_is_not_loaded_afterwards() -> None:
    missing = {"model": "chaos/guest", "message": "", "code": "FAILED_PRECONDITION"}
    missing |= {"kind": "guest unload", "reason": "MODEL_NOT_LOADED"}
    refused = missing | {"kind": "guest load", "code": "UNAVAILABLE", "reason": ""}
    loaded = {"model": "chaos/guest", "kind": "guest load"}
    late = call(25, **missing)  # when all was well again
    assert judged(KILL, call(12, **refused), late).failures == []
    again = judged(KILL, call(12, **refused), call(14, "right", **loaded), late)
    assert len(again.failures) == 1


def test_runs_are_told_together() -> None:
    one = judged(KILL, call(12, "right"))
    both = together([one, judged(KILL, call(12, "wrong")), judged(STOP, call(12, "right"))])
    assert [(row.name, row.times, row.right, row.wrong) for row in both.rows] == [
        (KILL.name, 2, 1, 1),
        (STOP.name, 1, 1, 0),
    ]
    assert both.rows[0].seconds == [8.0, 8.0]
    assert both.calls == {"chat": {"right": 2, "refused": 0, "wrong": 1}}
    assert len(both.failures) == 1
    assert one.rows[0].times == 1  # as it was


def test_what_is_not_well_or_left_over_is_a_failure() -> None:
    events = [
        fault(1, 1, "begins", KILL),
        fault(1, 2, "not well", KILL, missing=["chat"]),
        fault(2, 3, "missed", STOP, why="no token came"),
        {"what": "leftover", "at": 4, "thing": "file x.part"},
        {"what": "visitor", "at": 5, "model": "chaos/visitor-1", "failed": "load"},
    ]
    assert len(judge(events, needed=()).failures) == 4


def test_a_run_without_a_right_answer_of_each_kind_has_shown_nothing() -> None:
    assert len(judge([]).failures) == len(NEEDED)


def test_the_contract_has_no_unknown_error() -> None:
    reasons = contract()
    assert "UNKNOWN" not in reasons
    assert {"", "WORKER_UNAVAILABLE", "SHUTTING_DOWN"} <= reasons["UNAVAILABLE"]
