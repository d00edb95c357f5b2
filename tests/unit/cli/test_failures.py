"""What goes wrong: one sentence, an exit code by its kind, and never a traceback."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from cli import clips, failures
from cli.session import open_session
from tests.unit.cli.conftest import Person
from tools import vision_clips

ROOT = Path(__file__).resolve().parents[3]
# Every command that calls a stack; PICTURE, VIDEO and SOUND stand for files.
COMMANDS = [
    ["models"],
    ["load", "m/m"],
    ["load", "m/m", "--no-wait"],
    ["unload", "m/m"],
    ["watch"],
    ["chat", "-m", "m/m", "Hi"],
    ["chat", "Hi"],
    ["generate", "-m", "m/m", "Hi"],
    ["embed", "-m", "m/m", "Hi"],
    ["rerank", "-m", "m/m", "query", "text"],
    ["transcribe", "-m", "m/m", "SOUND"],
    ["transcribe", "-m", "m/m", "--rate", "16000", "SOUND"],
    ["detect", "faces", "PICTURE"],
    ["detect", "mesh", "PICTURE"],
    ["stream", "faces", "VIDEO"],
    ["bench", "chat", "-m", "m/m"],
    ["bench", "embed", "-m", "m/m"],
    ["bench", "stream", "faces", "VIDEO"],
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    hand = vision_clips.drawn_hand()
    clips.write_picture(folder / "picture.png", hand)
    writer = clips.VideoWriter(folder / "video.mp4", clips.Fraction(24))
    for _ in range(3):
        writer.write(hand)
    writer.close()
    (folder / "sound.wav").write_bytes(b"sound")
    names = {"PICTURE": "picture.png", "VIDEO": "video.mp4", "SOUND": "sound.wav"}
    return {name: str(folder / file) for name, file in names.items()}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_without_a_server(alone: Person, files: dict[str, str], command: list[str]) -> None:
    """The address is named, and what starts a stack."""
    result = alone.types(*(files.get(word, word) for word in command), "--json", exit_code=24)
    assert result.stdout == ""
    error = json.loads(result.stderr)["error"]
    assert error["status"] == "UNAVAILABLE"
    assert f"nothing answers at {alone.address}: " in error["message"]
    assert "`ml up`" in error["message"]


class Doorkeeper(grpc.GenericRpcHandler):
    """Refuses every call, and notes the keys."""

    def __init__(self) -> None:
        self.keys: list[Any] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        metadata = dict(handler_call_details.invocation_metadata)
        self.keys.append(metadata.get("authorization"))
        return grpc.stream_stream_rpc_method_handler(self._refuse)

    def _refuse(self, requests: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "no key fits")
        yield b""


def test_every_call_has_the_key(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("a-key-of-16-letters\n")
    monkeypatch.setenv("ML_API_KEY_FILE", str(tmp_path / "key"))
    doorkeeper = Doorkeeper()
    server = grpc.server(ThreadPoolExecutor(), [doorkeeper])
    person = Person(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    for command in COMMANDS:
        said = person.types(*(files.get(word, word) for word in command), exit_code=26).stderr
        assert said == f"ml: UNAUTHENTICATED: no key fits (from {person.address})\n", command
    server.stop(None).wait()
    assert len(doorkeeper.keys) >= len(COMMANDS)
    assert set(doorkeeper.keys) == {"Bearer a-key-of-16-letters"}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["detect", "faces", "nothing.png"], "cannot read nothing.png: No such file or directory"),
        (["detect", "faces", "README.md"], "README.md is not a picture: it must be JPEG, PNG"),
        (["detect", "faces", "-"], "stdin is empty"),
        (["detect", "noses", "README.md"], "task 'noses' must be one of faces, mesh,"),
        (["detect", "templates", "README.md"], "use `ml stream templates`"),
        (["stream", "faces", "nothing.mp4"], "there is no nothing.mp4"),
        (["stream", "faces", "README.md"], "README.md is not a video that can be read: "),
        (["stream", "templates", "VIDEO"], "--template belongs to task templates"),
        (["stream", "faces", "VIDEO", "--template", "x.png"], "--template belongs to task"),
        (["stream", "faces", "VIDEO", "-o", "VIDEO"], "is the video itself"),
        (["stream", "faces", "VIDEO", "-o", "no/x.mp4"], "no/x.mp4: No such file or directory"),
        (["stream", "faces", "VIDEO", "-O", "max_faces"], "'max_faces' must be NAME=VALUE"),
        (["bench", "stream", "templates", "VIDEO"], "task 'templates' must be one of"),
        (["transcribe", "-m", "m", "nothing.wav"], "cannot read nothing.wav"),
        (["load", "m", "-O", "=x"], "option '=x' must be NAME=VALUE"),
        (["models", "--address", "ftp://x"], "must be HOST, HOST:PORT or https://HOST:PORT"),
        (["detect", "faces", "PICTURE", "-O", "a b=1"], "option 'a b' is not known"),
        (["detect", "faces", "PICTURE", "-O", "höhe=1"], "option 'höhe' is not known"),
        (["detect", "faces", "PICTURE", "-O", "x_bin=1"], "option 'x_bin' is not known"),
        (["detect", "faces", "PICTURE", "-O", "bin=1"], "option 'bin' is not known"),
        (
            ["detect", "faces", "PICTURE", "-O", "x=ü"],
            "option x is 'ü': it must be printable ASCII",
        ),
        (["detect", "faces", "PICTURE", "-O", "x=a\nb"], "it must be printable ASCII"),
        (["chat", "-m", "m", "\udcff"], "an argument is not text"),
        (["embed", "-m", "m", "\udcff"], "an argument is not text"),
        (["load", "\udcff"], "an argument is not text"),
        (["models", "--address", "\udcff"], "an argument is not text"),
        (["models", "--address", "[::1"], "must be HOST, HOST:PORT or https://HOST:PORT"),
        (["models", "--address", "x:port"], "must be HOST, HOST:PORT or https://HOST:PORT"),
        (["models", "--address", "http://x", "--tls"], "TLS needs https://"),
        (["models", "--cert", "README.md"], "--cert and --key belong together"),
        (["models", "--ca", "nothing.pem"], "cannot read nothing.pem"),
        (["models", "--api-key-file", "LICENSE"], "there is no API key in LICENSE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_with_a_command_line(
    alone: Person,
    files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(ROOT)
    result = alone.types(*(files.get(word, word) for word in command), exit_code=2)
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_unknown_options_and_commands_are_usage_errors(alone: Person) -> None:
    for command in (["models", "--nonsense"], ["nonsense"], ["load"], ["chat", "--seed", "x"]):
        assert "Usage: " in alone.types(*command, exit_code=2).stderr


@pytest.mark.parametrize(
    "command",
    [
        ["chat", "--max-tokens", "99999999999", "Hi"],
        ["chat", "--seed", str(1 << 64), "Hi"],
        ["generate", "--max-tokens", str(1 << 31), "Hi"],
        ["embed", "--dimensions", str(1 << 31), "Hi"],
        ["transcribe", "--rate", str(1 << 31), "-"],
        ["bench", "chat", "--max-tokens", str(1 << 31)],
        ["bench", "embed", "--texts", str(1 << 70)],
        ["models", "--timeout", "inf"],
        ["models", "--nonsense"],
        ["load"],
    ],
    ids=" ".join,
)
def test_usage_errors_are_json_for_those_who_want_it(alone: Person, command: list[str]) -> None:
    assert "Usage: " in alone.types(*command, exit_code=2).stderr
    result = alone.types(*command, "--json", exit_code=2)
    (line,) = result.stderr.splitlines()
    error = json.loads(line)["error"]
    assert (error["exit_code"], result.stdout) == (2, "")
    assert error["message"]


class Refused(grpc.RpcError):
    """An error of a call, without details."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__()
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "because"

    def trailing_metadata(self) -> Any:
        return (("grpc-status-details-bin", b"\xff\xff"),)  # what is broken is left out


def test_exit_codes_are_those_of_the_document() -> None:
    table = (ROOT / "docs" / "cli.md").read_text()
    told = {
        name: int(code)
        for code, name in re.findall(r"^\| (\d+) \| `([A-Z_]+)` ", table, re.MULTILINE)
    }
    codes = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
    assert told == {
        code.name: failures.of_call(Refused(code), "there:1").exit_code for code in codes
    }
    failure = failures.of_call(Refused(grpc.StatusCode.UNAUTHENTICATED), "there:1")
    assert str(failure) == "UNAUTHENTICATED: because (from there:1)"


@pytest.mark.parametrize(
    ("address", "options", "reached", "secure"),
    [
        ("box", {}, "box:50051", False),
        ("box:1", {}, "box:1", False),
        ("http://box", {}, "box:50051", False),
        ("https://box", {}, "box:50053", True),
        ("box", {"tls": True}, "box:50053", True),
        ("box", {"ca": Path("LICENSE")}, "box:50053", True),
        ("box", {"cert": Path("LICENSE"), "key": Path("LICENSE")}, "box:50054", True),
        ("[::1]:9", {}, "[::1]:9", False),
    ],
)
def test_addresses(
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    options: dict[str, Any],
    reached: str,
    secure: bool,
) -> None:
    monkeypatch.chdir(ROOT)
    session = open_session(address, **options)
    assert (session.address, session.tls is not None) == (reached, secure)


def test_a_key_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ML_API_KEY", raising=False)
    assert open_session().metadata == ()
    monkeypatch.setenv("ML_API_KEY", "from-the-environment")
    assert open_session().metadata == (("authorization", "Bearer from-the-environment"),)
    (tmp_path / "key").write_text("from-a-file\n")
    session = open_session(api_key_file=tmp_path / "key")
    assert session.metadata == (("authorization", "Bearer from-a-file"),)


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines", "\udcff"])
def test_a_key_that_is_none(
    alone: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("ML_API_KEY", key)
    said = alone.types("models", exit_code=2).stderr
    assert said == "ml: there is no API key in ML_API_KEY: it must be one line of ASCII\n"
    file = tmp_path / "key"
    file.write_text(key, errors="surrogateescape")
    said = alone.types("models", "--api-key-file", str(file), exit_code=2).stderr
    assert said == f"ml: there is no API key in {file}: it must be one line of ASCII\n"
