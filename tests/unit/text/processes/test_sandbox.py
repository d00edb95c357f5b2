"""What text_svc says of the sandbox when it starts, and what the processes in it must not do."""

from __future__ import annotations

import logging
import threading

import pytest

from shared import landlock
from text_svc.processes import sandbox
from text_svc.processes.sandbox import SandboxMode

NONE = landlock.Support(0, "it was built without")


def test_a_kernel_without_landlock_is_refused_where_it_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(landlock, "support", lambda: NONE)
    with pytest.raises(SystemExit, match=r"TEXT_SANDBOX=required, but .*: it was built without"):
        sandbox.check("required")


@pytest.mark.parametrize(
    ("mode", "kernel", "level", "why"),
    [
        ("auto", NONE, logging.WARNING, "the kernel has no Landlock: it was built without"),
        ("off", landlock.Support(7), logging.WARNING, "TEXT_SANDBOX=off"),
        ("auto", landlock.Support(3), logging.INFO, None),
        ("required", landlock.Support(7), logging.INFO, None),
    ],
)
def test_one_line_says_what_the_kernel_gives(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mode: SandboxMode,
    kernel: landlock.Support,
    level: int,
    why: str | None,
) -> None:
    monkeypatch.setattr(landlock, "support", lambda: kernel)
    with caplog.at_level(logging.INFO):
        sandbox.check(mode)
    (line,) = caplog.records
    assert line.levelno == level
    if why:
        assert line.__dict__["why"] == why
    else:
        told = {name: line.__dict__[name] for name in ("landlock", "files", "tcp", "signals")}
        newer = kernel.abi == 7
        assert told == {"landlock": kernel.abi, "files": True, "tcp": newer, "signals": newer}


def test_a_process_with_other_threads_is_not_restricted() -> None:
    """The kernel would restrict one thread alone."""
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        with pytest.raises(RuntimeError, match="before it starts threads"):
            landlock.restrict({})
    finally:
        end.set()
        other.join()
