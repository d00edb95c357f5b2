"""`ml up` and `ml down`, with a stack that does nothing but say that it serves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cli.commands import stack
from stack import control
from tests.unit.cli.conftest import Person

# Told --port PORT --run-dir FOLDER and what the person has added.
SCRIPT = """
import json, os, pathlib, sys, time
from stack.control import start_ticks
if "--refuse" in sys.argv:
    sys.exit("the port is in use")
folder = pathlib.Path(sys.argv[sys.argv.index("--run-dir") + 1])
state = {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid())}
state |= {"states": {"envoy": "serving"}, "addresses": {"envoy": "127.0.0.1:" + sys.argv[2]}}
state |= {"logs": str(folder)}
(folder / "part").write_text(json.dumps(state))
(folder / "part").rename(folder / "stack.json")
if "--fail" in sys.argv:
    time.sleep(1)  # it must be seen before
    sys.exit("Envoy has ended")
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "start_command", lambda: [sys.executable, "-c", SCRIPT])


def test_up_and_down(alone: Person, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    where = ("--run-dir", str(folder))
    (said,) = alone.reads("up", "--detach", "--json", "--port", "1234", *where)
    try:
        assert said["addresses"] == {"envoy": "127.0.0.1:1234"}
        again = alone.types("up", "-d", *where, exit_code=1).stderr
        assert again == f"ml: a stack is already running in {folder} (process {said['pid']})\n"
        assert control.find(folder / "stack.json")
    finally:
        (stopped,) = alone.reads("down", "--json", *where)
    assert stopped == {"stopped": True, "message": "the stack has stopped"}
    assert alone.types("down", *where).stdout == "no stack is running\n"
    (stopped,) = alone.reads("down", "--json", *where)
    assert stopped == {"stopped": False, "message": "no stack is running"}


def test_a_stack_that_cannot_start_says_why(alone: Person, tmp_path: Path) -> None:
    command = ("up", "-d", "--json", "--run-dir", str(tmp_path), "--refuse")
    error = json.loads(alone.types(*command, exit_code=1).stderr)["error"]
    assert error == {"message": "the stack did not start: the port is in use", "exit_code": 1}


def test_a_stack_that_fails_later_is_a_failure(alone: Person, tmp_path: Path) -> None:
    result = alone.types("up", "--json", "--run-dir", str(tmp_path), "--fail", exit_code=1)
    assert json.loads(result.stdout)["addresses"]
    error = json.loads(result.stderr)["error"]
    log = tmp_path / "up.log"
    assert error == {"message": f"the stack has failed: see {log}", "exit_code": 1}
    assert log.read_text() == "Envoy has ended\n"
