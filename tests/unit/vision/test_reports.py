"""MediaPipe's reports go where the service says: nowhere."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tests.support.processes import ROOT
from tools.models import model_dir
from vision_svc.reports import NOWHERE

CLOSE_A_TASK = """
import sys
from vision_svc.reports import refuse_reports
refuse_reports(sys.argv[2])
from mediapipe.tasks.python import BaseOptions, vision
options = vision.FaceDetectorOptions(base_options=BaseOptions(model_asset_path=sys.argv[1]))
vision.FaceDetector.create_from_options(options).close()
sys.stdin.read()  # the report is sent meanwhile
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


def test_nobody_listens_nowhere() -> None:
    host, port = NOWHERE.removeprefix("http://").split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), 60)
