from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.commands import text
from ml import model_management_pb2 as mgmt
from shared.errors import QueueFullError
from tests.support.scripted_services import Script
from tests.unit.cli.conftest import Person

MODEL = ("-m", "m/m")


def test_an_answer_is_its_text(person: Person, script: Script) -> None:
    assert person.types("chat", *MODEL, "Hi", "there").stdout == "Hello.\n"
    (request,) = script.requests
    assert [(each.role, each.content) for each in request.messages] == [("user", "Hi\n\nthere")]
    assert request.model == "m/m"
    assert not request.HasField("temperature")


def test_options_are_those_of_the_request(person: Person, script: Script, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    options = ["--temperature", "0", "--top-p", "0.5", "--seed", "3", "--max-tokens", "9"]
    options += ["--stop", "a", "--stop", "b", "--json-schema", str(schema)]
    person.types("chat", *MODEL, "-s", "Be brief.", *options, "Hi")
    person.types("generate", *MODEL, *options, "Hi")
    chat, text = script.requests
    assert chat.messages[0].role == "system"
    assert (chat.max_tokens, text.max_length) == (9, 9)
    for request in (chat, text):
        assert request.HasField("temperature")
        assert (request.temperature, request.top_p, request.seed) == (0, 0.5, 3)
        assert list(request.stop) == ["a", "b"]
        assert request.response_format.json_schema == '{"type": "object"}'


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_text_comes_from_a_pipe(person: Person, script: Script, command: str) -> None:
    person.types(command, *MODEL, stdin="from a pipe\n")
    person.types(command, *MODEL, "Sum up:", "-", stdin="a\nb\n")
    asked = [
        request.prompt if command == "generate" else request.messages[0].content
        for request in script.requests
    ]
    assert asked == ["from a pipe", "Sum up:\n\na\nb"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["-", "-"], "can be given once"),
        ([], "the text is empty"),
        (["--image", "README.md", "Hi"], "README.md is not a picture"),
        (["--image", "nothing.png", "Hi"], "cannot read nothing.png: No such file"),
        (["--json-schema", "nothing.json", "Hi"], "cannot read nothing.json"),
    ],
)
def test_bad_input_is_said_before_any_call(
    person: Person, script: Script, given: list[str], said: str
) -> None:
    assert said in person.types("chat", *MODEL, *given, exit_code=2).stderr
    assert not script.requests


def test_what_is_not_text_does_not_end_a_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["one", b"\xff", "\udcff", "two"])

    def types(prompt: str) -> str:
        said = next(typed, None)
        if said is None:
            raise EOFError
        return said.decode() if isinstance(said, bytes) else said

    monkeypatch.setattr("builtins.input", types)
    assert list(text._questions()) == ["one", "two"]
    assert capsys.readouterr().err == 2 * "ml: that is not text\n"


def test_json_is_a_line_for_each_message(person: Person) -> None:
    lines = person.reads("chat", *MODEL, "--json", "Hi")
    assert "".join(line["content"] for line in lines) == "Hello."
    assert [line["done"] for line in lines] == [False, False, False, True]
    assert lines[-1]["usage"]["generated_tokens"] == 3


def test_an_answer_that_breaks_off_is_an_error(person: Person, script: Script) -> None:
    script.fails_after, script.error = 2, QueueFullError("too many", retry_after=2.5)
    result = person.types("chat", *MODEL, "Hi", exit_code=18)
    assert result.stdout == "Hello"
    assert result.stderr == "ml: QUEUE_FULL: too many (try again in 2.5 s)\n"


def test_a_model_that_is_not_loaded(person: Person) -> None:
    said = person.types("chat", "-m", "no/no", "Hi", exit_code=19).stderr
    assert said == "ml: MODEL_NOT_LOADED: the model 'no/no' is not loaded\n"
    told = person.types("chat", "-m", "no/no", "--json", "Hi", exit_code=19)
    assert told.stdout == ""
    assert json.loads(told.stderr) == {
        "error": {
            "message": "the model 'no/no' is not loaded",
            "exit_code": 19,
            "status": "FAILED_PRECONDITION",
            "reason": "MODEL_NOT_LOADED",
        }
    }


def loaded(model: str, kind: str, state: int = mgmt.MODEL_STATE_READY) -> mgmt.ModelStatus:
    return mgmt.ModelStatus(model_id=model, pipeline_type=kind, state=state)


def test_the_one_model_that_fits_need_not_be_named(person: Person, script: Script) -> None:
    script.models = [
        loaded("an/embedder", "feature-extraction"),
        loaded("a/chat", "text-generation"),
        loaded("on/its-way", "text-generation", mgmt.MODEL_STATE_LOADING),
    ]
    person.types("chat", "Hi")
    assert script.requests[-1].model == "a/chat"
    person.types("embed", "Hi")
    assert script.requests[-1].model == "an/embedder"
    assert (
        "no loaded model is for reranking" in person.types("rerank", "q", "d", exit_code=2).stderr
    )
    script.models.append(loaded("b/chat", "text-generation"))
    assert "must be one of a/chat, b/chat" in person.types("chat", "Hi", exit_code=2).stderr
