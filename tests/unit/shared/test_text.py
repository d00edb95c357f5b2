"""Text from the wire in logs."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest

from shared.caller import caller, set_caller
from shared.errors import InvalidArgumentError
from shared.telemetry import logs
from shared.text import MAX_ID_CHARACTERS, MAX_TEXT_CHARACTERS, cut, one_line, printable


def test_an_id_is_cut_and_cleaned() -> None:
    assert printable("req-1") == "req-1"
    assert printable("a\nb\x1b[31m é\x7f") == "a?b?[31m ??"
    assert len(printable("x" * 10_000)) == MAX_ID_CHARACTERS


def test_a_text_says_what_it_lacks() -> None:
    assert cut("short") == "short"
    assert cut("x" * 12, 10) == "xxxxxxxxxx... (2 more characters)"
    assert one_line("a\nb\u2028c") == "a\\x0ab\\x2028c"


def test_an_error_quotes_no_more_than_fits_a_header() -> None:
    error = InvalidArgumentError(f"no such option {'x' * 1_000_000!r}")
    assert len(error.message) < MAX_TEXT_CHARACTERS + 40


def test_request_id_and_caller_of_a_call_are_clean() -> None:
    logs.set_request_id("id\r\n" + "x" * 1000)
    assert logs.request_id() == "id??" + "x" * (MAX_ID_CHARACTERS - 4)
    set_caller({"x-ml-caller": "al\nice"})
    assert caller() == "al?ice"
    set_caller({})
    assert caller() == ""


@pytest.fixture(params=["json", "text"])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Logs a record as a service does, and returns what is written."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    output = io.StringIO()
    monkeypatch.setattr("sys.stdout", output)
    stop: list[Any] = []
    monkeypatch.setattr("atexit.register", stop.append)
    logs.configure("test", style=request.param)

    def write(message: str, **extra: object) -> str:
        logging.getLogger("test").info(message, extra=extra)
        stop.pop()()
        return output.getvalue()

    yield write
    root.handlers[:], root.level = handlers, level


def test_a_line_is_one_line_and_cut(written: Any) -> None:
    text = written("model 'a\nfake line\x1b' " + "x" * 1_000_000, model="y" * 1_000_000)
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert len(text) < 2 * MAX_TEXT_CHARACTERS + 500
    if text.startswith("{"):
        assert json.loads(text)["model"].endswith("more characters)")
