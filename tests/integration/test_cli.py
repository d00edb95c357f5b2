"""`ml` as a person uses it: processes in front of a real stack."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import clips
from ml import mediapipe_pb2, mediapipe_pb2_grpc
from tests.integration.test_readme import commands
from tests.support.stack import CHAT, ROOT, Stack, wait_for
from tools import vision_clips

Ml = Callable[..., "subprocess.CompletedProcess[str]"]
FRAMES, LONG = 12, 1500


@pytest.fixture(scope="module")
def environment(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A shell that finds `ml`, and `ml` the stack. What it loads is unloaded at the end."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "ml"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m cli "$@"\n')
    script.chmod(0o755)
    known = {name: value for name, value in os.environ.items() if not name.startswith("ML_")}
    found = known | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    found["ML_ADDRESS"] = stack.addresses["envoy"]
    before = loaded(found)
    yield found
    if new := loaded(found) - before:
        shell(f"ml unload {' '.join(new)}", found)


def shell(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a command as it stands in a document."""
    return subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def loaded(environment: dict[str, str]) -> set[str]:
    said = shell("ml models --json", environment).stdout.splitlines()
    return {json.loads(line)["model_id"] for line in said}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A camera that moves over a portrait."""
    path = tmp_path_factory.mktemp("video") / "portrait.mp4"
    writer = clips.VideoWriter(path, clips.Fraction(24))
    for image in vision_clips.moving(vision_clips.astronaut(), FRAMES):
        writer.write(image)
    writer.close()
    return path


# The beginning of a command, and what it prints.
SAID = {
    "ml load HuggingFaceTB": f"{CHAT} is ready: text-generation, ",
    "ml chat": "The capital of France is Paris.\n",
    "ml embed": "A man is eating food.\n",
    "ml detect mesh": "face 0.9",
    "ml models": CHAT,
    "cat models/pictures": '"faces": [{"x": 0.3',
    "printf": '{"index": 0, "values": [0.0',
    "ml bench chat": "first token, p50 and p95",
    "ml bench embed": '"texts_per_second": ',
}


def test_every_command_of_the_documents(environment: dict[str, str]) -> None:
    """In their order; the sampled chat of the README may say anything."""
    run = [command for command in dict.fromkeys(commands()) if "ml " in f" {command}"]
    run = [command for command in run if command.startswith(("ml ", "cat ", "printf "))]
    assert len(run) >= 12
    # README's own chat is sampled.
    for command in sorted(run, key=lambda each: not each.startswith("ml load")):
        result = shell(command, environment)
        assert result.returncode == 0, (command, result.stderr)
        for beginning, said in SAID.items():
            if command.startswith(beginning) and (beginning != "ml chat" or "-t" in command):
                assert said in result.stdout, command


def test_a_picture_is_answered_as_over_grpc_and_drawn_on(
    stack: Stack, environment: dict[str, str], tmp_path: Path
) -> None:
    picture, out = ROOT / "models/pictures/astronaut.png", tmp_path / "out.png"
    said = shell(f"ml detect faces {picture} -o {out} --json", environment).stdout
    with stack.channel() as channel:
        stub = mediapipe_pb2_grpc.MediapipeServiceStub(channel)
        request = mediapipe_pb2.ImageRequest(image_data=picture.read_bytes(), format="png")
        (face,) = stub.DetectFaces(request).faces
    (told,) = json.loads(said)["faces"]
    for name in ("x", "y", "width", "height", "confidence"):
        assert told[name] == pytest.approx(getattr(face, name), rel=1e-5)
    assert len(told["keypoints"]) == len(face.keypoints)
    drawn = clips.decode_picture(out.read_bytes(), "out.png")
    height, width = drawn.shape[:2]
    edge = drawn[round((face.y + face.height / 2) * height), round(face.x * width)]
    assert tuple(int(each) for each in edge) == (60, 220, 90)


def test_a_video_is_answered_and_written(
    environment: dict[str, str], video: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    result = shell(f"ml stream selfie {video} -o {out} -O mask_format=alpha", environment)
    assert result.stdout.startswith(f"{FRAMES} frames, {FRAMES} with a result, "), result.stderr
    with clips.Video(str(video)) as given, clips.Video(str(out)) as drawn:
        pairs = list(zip(given, drawn, strict=True))
    assert len(pairs) == FRAMES
    # The person is tinted green.
    assert all(
        after.image[..., 1].mean() > before.image[..., 1].mean() + 10 for before, after in pairs
    )
    lines = shell(f"ml stream faces - --json --frames 5 < {video}", environment).stdout.splitlines()
    assert [json.loads(line)["frame_number"] for line in lines] == list(range(5))


def begun(command: str, environment: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *shlex.split(command)],
        bufsize=0,  # what Python has read ahead, `communicate` does not return
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def stopped(process: subprocess.Popen[bytes], beginning: int) -> tuple[bytes, bytes]:
    """Stops a command by Ctrl-C once it has printed so many bytes; what it printed, and said."""
    assert process.stdout
    first = b""
    while len(first) < beginning:
        piece = process.stdout.read(beginning - len(first))
        assert piece, process.communicate()[1]
        first += piece
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    return first + out, error


def in_flight(environment: dict[str, str]) -> dict[str, int]:
    lines = shell("ml models --json", environment).stdout.splitlines()
    return {status["model_id"]: status["calls_in_flight"] for status in map(json.loads, lines)}


def test_ctrl_c_ends_a_text_and_its_work(environment: dict[str, str]) -> None:
    assert shell(f"ml load {CHAT}", environment).returncode == 0
    command = f"generate -m {CHAT} --max-tokens 4000 --temperature 0 'One, two, three,'"
    text, error = stopped(begun(command, environment), 4)
    assert error == b""
    assert len(text) < 8000
    wait_for("the end of its work", lambda: in_flight(environment)[CHAT] == 0)


def test_ctrl_c_ends_a_watch_and_a_video(environment: dict[str, str], tmp_path: Path) -> None:
    told, error = stopped(begun("watch", environment), 8)
    assert (b"ready" in told, error) == (True, b"")
    video, out = tmp_path / "long.mp4", tmp_path / "out.mp4"
    writer = clips.VideoWriter(video, clips.Fraction(24))
    for _ in range(LONG):  # takes seconds
        writer.write(np.zeros((96, 128, 3), np.uint8))
    writer.close()
    command = f"stream faces {video} -o {out} --json"
    _, error = stopped(begun(command, environment), 8)
    assert error == b""
    with clips.Video(str(out)) as written:
        assert 0 < len(list(written)) < LONG


def test_a_reader_that_leaves_ends_a_command(environment: dict[str, str], video: Path) -> None:
    command = f"ml stream faces {video} --json | head -n 1; echo ${{PIPESTATUS[0]}}"
    result = shell(command, environment)
    assert result.stdout.splitlines()[-1] in ("141", "0")  # 0: all was written before it left
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("ml chat -m nobody/nothing Hi", 19, "ml: MODEL_NOT_LOADED: "),
        ("ml load nobody/nothing -t text-generation", 15, "ml: MODEL_NOT_FOUND: "),
        (
            "ml detect faces models/pictures/astronaut.png -O noses=2",
            13,
            "ml: UNKNOWN_OPTION: option 'noses' is not known",
        ),
        ("ml models --timeout 0.001", 14, "ml: DEADLINE_EXCEEDED: "),
        ("ml unload ''", 13, "ml: MISSING_FIELD: "),
    ],
)
def test_exit_codes(environment: dict[str, str], command: str, code: int, said: str) -> None:
    result = shell(command, environment)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith(said), result.stderr
    assert result.stderr.count("\n") == 1
