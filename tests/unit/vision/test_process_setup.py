"""The pinned MediaPipe, the private parts of it that vision_svc uses, and its usage reports."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from mediapipe.tasks.python.core.mediapipe_c_bindings import load_raw_library
from mediapipe.tasks.python.vision.core import image

from tests.support.processes import ROOT
from tools.models import model_dir
from vision_svc import process_setup
from vision_svc.backends.landmarks import POINT
from vision_svc.backends.mediapipe_tasks import TaskDetector
from vision_svc.detector import Mode, VisionTask
from vision_svc.options import parse_options
from vision_svc.process_setup import NOWHERE
from vision_svc.tasks import TASKS

MEDIAPIPE_TASKS = [task for task in TASKS.values() if "segmentation" not in task.name]

CLOSE_A_TASK = """
import sys
from vision_svc.process_setup import refuse_reports
refuse_reports(sys.argv[2])
from mediapipe.tasks.python import BaseOptions, vision
options = vision.FaceDetectorOptions(base_options=BaseOptions(model_asset_path=sys.argv[1]))
vision.FaceDetector.create_from_options(options).close()
sys.stdin.read()  # keeps the process alive while the report is sent
"""


def test_reports_go_to_the_proxy_and_not_to_their_host() -> None:
    model = model_dir() / "vision" / "blaze_face_short_range.tflite"
    if not model.is_file():
        pytest.skip(f"there is no {model}: run `make models`")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(120)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-c", CLOSE_A_TASK, str(model), address],
            cwd=ROOT,
            env=os.environ | {"NO_PROXY": "*", "no_proxy": "play.googleapis.com"},
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as child:
            try:
                connection, _ = proxy.accept()
                with connection:
                    request = connection.recv(1024)
            finally:
                child.kill()
    assert request.startswith(b"CONNECT play.googleapis.com:443 ")


def test_nothing_listens_on_nowhere() -> None:
    host, port = NOWHERE.removeprefix("http://").split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), 60)


def test_the_supported_mediapipe_is_installed_and_pinned() -> None:
    assert process_setup.mediapipe_fault() == ""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = f"mediapipe=={process_setup.MEDIAPIPE_VERSION}"
    assert pinned in project["optional-dependencies"]["vision"]


def test_another_version_is_explained_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = process_setup.MEDIAPIPE_VERSION
    monkeypatch.setattr(process_setup, "MEDIAPIPE_VERSION", "9.8.7")
    assert process_setup.mediapipe_fault().startswith(f"mediapipe {installed} is installed, but ")


def test_the_service_does_not_start_on_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    monkeypatch.setattr(process_setup, "MEDIAPIPE_VERSION", "9.8.7")
    with pytest.raises(SystemExit, match=r"reads the memory of version 9\.8\.7 directly"):
        runpy.run_module("vision_svc", run_name="__main__")


@pytest.mark.parametrize("name", ["MpImageCreateFromUint8Data", "MpImageFree", "MpErrorFree"])
def test_the_library_has_the_functions_for_pictures(name: str) -> None:
    assert hasattr(load_raw_library(image._CTYPES_SIGNATURES), name)


def test_the_memory_layout_of_a_landmark() -> None:
    offsets = {name: POINT.fields[name][1] for name in POINT.names or ()}  # type: ignore[index]
    floats = {name: 4 * i for i, name in enumerate(("x", "y", "z"))}
    assert offsets == floats | {
        "has_visibility": 12,
        "visibility": 16,
        "has_presence": 20,
        "presence": 24,
    }
    assert POINT.itemsize == 40


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("task", MEDIAPIPE_TASKS, ids=lambda task: task.name)
def test_each_task_has_the_private_parts_that_are_used(task: VisionTask, mode: Mode) -> None:
    options = parse_options(task.options)
    path: Path = model_dir() / "vision" / task.asset(options).file
    if not path.is_file():
        pytest.skip(f"there is no {path}: run `make models`")
    detector = task.open(path, options, mode)
    try:
        # Tracks and boxes in 3D begin with a detector of MediaPipe's.
        of_mediapipe = getattr(detector, "_detector", detector)
        assert isinstance(of_mediapipe, TaskDetector)
        for name in ("_handle", "_dispatcher", "_lib"):
            assert hasattr(of_mediapipe._task, name), f"MediaPipe's {task.name} has lost {name}"
        assert of_mediapipe._call._call.argtypes, "the Tasks API no longer sets signatures"
        assert isinstance(of_mediapipe._call._result_type(), ctypes.Structure)
    finally:
        detector.close()
