from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cli import output
from cli.commands import models
from ml import model_management_pb2 as mgmt
from ml import transformers_pb2 as pb

ROOT = Path(__file__).resolve().parents[3]
# What takes a tenth of a second or more to import.
SLOW = ("grpc", "google.protobuf", "rich", "asyncio", "numpy", "cv2", "av", "pydantic", "ml")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_help_imports_nothing_slow() -> None:
    program = (
        "import os, sys; sys.argv = ['ml', '--help']; os._exit = sys.exit\n"
        "from cli.__main__ import main\n"
        "try: main()\n"
        f"finally: print(*(set(sys.modules) & set({SLOW!r})), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    commands = ["up", "down", "models", "load", "unload", "watch", "chat", "generate", "embed"]
    commands += ["rerank", "transcribe", "detect", "stream", "bench"]
    shown = done.stdout.partition("Commands:")[2].split()
    assert [name for name in commands if name not in shown] == []
    assert done.stderr.split() == []


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("ml de", ["detect"]),
        ("ml detect ha", ["hands", "hair"]),
        ("ml load --type text-c", ["text-classification"]),
        ("ml models --js", ["--json"]),
    ],
)
def test_completion(words: str, completed: list[str]) -> None:
    count = len(words.split()) - 1
    environment = {"_ML_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    command = [sys.executable, "-m", "cli"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == completed, done.stderr


def test_64_bit_integers_are_numbers_at_any_depth() -> None:
    status = mgmt.ModelStatus(model_id="m", bytes_total=1 << 60, options={"a": "b"})
    answer = mgmt.ListModelsResponse(models=[status], sequence=1 << 61)
    values = output.plain(answer)
    assert values["sequence"] == 1 << 61
    assert values["models"][0]["bytes_total"] == 1 << 60
    assert values["models"][0]["options"] == {"a": "b"}
    tensor = pb.Tensor(shape=[1, 1 << 40], data=b"\x00\xff")
    assert output.plain(tensor)["shape"] == [1, 1 << 40]
    assert output.plain(tensor)["data"] == "AP8="


def test_what_models_write_cannot_steer_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a\x1b[31mb\x07\r\n\tc\x9b1m"
    for stream, shown in ((Terminal(), "a�[31mb��\n\tc�1m"), (io.StringIO(), text)):
        monkeypatch.setattr(sys, "stdout", stream)
        output.write(text)
        assert stream.getvalue() == shown


def test_control_characters_are_escaped_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a\x1b[31m\x7f\x9b1m é"
    output.json_line({"text": text})
    said = capsys.readouterr().out
    assert said == '{"text": "a\\u001b[31m\\u007f\\u009b1m é"}\n'
    assert json.loads(said) == {"text": text}


REASON = "a [/b] \x1b[31m :smile: [int8, int4]"
SHOWN = "a [/b] �[31m :smile: [int8, int4]"


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal gets of progress."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, no_color=True, width=200, highlight=False)
    monkeypatch.setattr(output, "console", lambda: console)
    return file


def test_a_watch_shows_reasons_as_they_are(screen: io.StringIO) -> None:
    failed = mgmt.ModelStatus(
        model_id="[b]m", engine="[/i]", state=mgmt.MODEL_STATE_FAILED, reason=REASON
    )
    models._watch_table(iter([mgmt.WatchModelsResponse(models=[failed])]), set())
    shown = screen.getvalue()
    assert f"failed: {SHOWN}" in shown
    assert "[b]m" in shown
    assert "[/i]" in shown


def test_the_progress_of_a_load_shows_the_id_as_it_is(screen: io.StringIO) -> None:
    with models.load_progress(REASON) as show:
        show(mgmt.ModelStatus(state=mgmt.MODEL_STATE_LOADING))
    assert f"{SHOWN}: loading" in screen.getvalue()


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert output.coloured(Terminal())
    assert not output.coloured(io.StringIO())
    assert not output.progress_is_shown(json=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not output.coloured(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not output.coloured(Terminal())


def test_columns_are_aligned_and_never_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("A", "B"), [("x" * 200, "1"), ("y", "two\nlines")])
    head, first, second = capsys.readouterr().out.splitlines()
    assert head == f"{'A':200}  B"
    assert first == f"{'x' * 200}  1"
    assert second == f"{'y':200}  two lines"
    output.table(("A",), [])
    assert capsys.readouterr().out == ""
