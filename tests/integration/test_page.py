"""The page, as a person uses it in a browser. Real Envoy, real services."""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from ml import mediapipe_pb2, mediapipe_pb2_grpc
from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from stack import callers
from stack.envoy_config import EnvoyOptions, native_config
from stack.ports import Ports
from tests.integration.conftest import Start
from tests.support.folders import MakeFolder
from tests.support.stack import CHAT, EMBEDDER, Stack, wait_for
from tools.browser import NAMES, Browser, BrowserError, browser, find_browser

KEY = "k" * 20
BINARY = find_browser()
needs_browser = pytest.mark.skipif(not BINARY, reason=f"there is none of {', '.join(NAMES)}")

# Where something is drawn, from 0 to 1: left, top, right and bottom edge; null if nowhere.
DRAWN = """(() => {
  const canvas = document.getElementById("drawn"), { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  let [left, top, right, bottom] = [1, 1, 0, 0];
  for (let place = 0; place < width * height; place++) {
    if (data[4 * place + 3] < 128) continue;
    const x = place % width / width, y = Math.floor(place / width) / height;
    [left, top] = [Math.min(left, x), Math.min(top, y)];
    [right, bottom] = [Math.max(right, x), Math.max(bottom, y)];
  }
  return right ? [left, top, right, bottom] : null;
})()"""
# Notes something, at each change within an element.
WATCHED = """window.noted = [];
window.watching?.disconnect();
window.watching = new MutationObserver(() => noted.push(%s));
watching.observe(document.getElementById("%s"),
  {subtree: true, childList: true, characterData: true, attributes: true})"""
# No video plays; and every picture is skipped. What was there before is kept.
NO_PLAY = """window.playing = HTMLMediaElement.prototype.play;
void (HTMLMediaElement.prototype.play = function () {
  window.tracks = this.srcObject.getTracks();
  return Promise.reject(new Error("no picture"));
})"""
SKIPS = """window.fetching = window.fetch;
void (window.fetch = async (path, ...more) => path.startsWith("/ml.MediapipeService/")
  ? new Response('{"faces": [], "skip_message": "it came too late"}') : fetching(path, ...more))"""


def get(address: str, path: str, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def load(stack: Stack, model: str) -> None:
    with stack.channel() as channel:
        stub = models_grpc.ModelManagementServiceStub(channel)
        stub.LoadModel(models_pb.LoadModelRequest(model_id=model))


def unload(stack: Stack, model: str) -> None:
    with stack.channel() as channel, contextlib.suppress(grpc.RpcError):  # it is not loaded
        stub = models_grpc.ModelManagementServiceStub(channel)
        stub.UnloadModel(models_pb.UnloadModelRequest(model_id=model))


@pytest.fixture(scope="module")
def picture(models: Path) -> Path:
    return models / "pictures" / "astronaut.png"


@pytest.fixture(scope="module")
def page(stack: Stack, module_folder: MakeFolder, picture: Path) -> Iterator[Browser]:
    """The page of the shared stack, with a webcam that shows a picture."""
    assert BINARY
    camera = module_folder("camera") / "camera.mjpeg"
    file = io.BytesIO()
    Image.open(picture).convert("RGB").resize((480, 480)).save(file, "JPEG")
    camera.write_bytes(3 * file.getvalue())
    switches = (
        *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
        f"--use-file-for-fake-video-capture={camera}",
    )
    with browser(BINARY, *switches) as opened:
        opened.open(f"http://{stack.addresses['envoy']}/")
        yield opened


def edges(points: Iterable[Any]) -> list[float]:
    """As `DRAWN`, of points that may be beyond the picture."""
    xs, ys = zip(*((point.x, point.y) for point in points), strict=True)
    return [min(1, max(0, edge)) for edge in (min(xs), min(ys), max(xs), max(ys))]


def body(page: Browser, place: str) -> str:
    return str(page.evaluate(f"document.getElementById('{place}').innerText"))


# What a person does


@needs_browser
def test_a_person_loads_a_model_and_sees_how_far_it_is(page: Browser, stack: Stack) -> None:
    unload(stack, CHAT)
    wait_for("the watch", lambda: "Connected" in body(page, "connection"))
    # The state in the row of the model, and whether there is a bar.
    row = f"[...rows.get('{CHAT}')?.element.cells ?? []][2]"
    state = f"[{row}?.innerText.trim(), !{row}?.querySelector('progress').hidden]"
    page.evaluate(WATCHED % (state, "models"))
    page.element("combobox", "Model to load").write(CHAT)
    page.element("button", "Load").click()
    page.element("button", f"Unload {CHAT}")
    ready = ["ready openvino", False]
    seen = wait_for("the model", lambda: ready in (noted := page.evaluate("noted")) and noted)
    under_way = [text for text, progress in seen if text and progress]
    assert any(re.match("fetching|loading|converting|pending", text) for text in under_way), seen
    assert re.search(r"\d [MG]iB", body(page, "models"))


@needs_browser
def test_a_person_chats_and_sees_tokens_as_they_come(page: Browser, stack: Stack) -> None:
    load(stack, CHAT)
    wait_for("the model", lambda: page.element("combobox", "Chat model").choose(CHAT))
    page.evaluate(WATCHED % ("document.getElementById('chat-log').innerText.length", "chat-log"))
    page.element("spinbutton", "Tokens at most").write("12")
    page.element("spinbutton", "Temperature").write("0")
    page.element("textbox", "Message").write("What is the capital of France?")
    page.press("Enter")
    wait_for("the answer", lambda: "tokens" in body(page, "chat-facts"))
    question, answer = body(page, "chat-log").split("\n\n", 1)
    assert question == "What is the capital of France?"
    assert len(answer) > 10
    assert len(set(page.evaluate("noted"))) > 4
    assert re.match(r"\d+ tokens, first after \d", body(page, "chat-facts"))
    # The conversation goes on, until it is stopped.
    page.element("spinbutton", "Tokens at most").write("5000")
    page.element("textbox", "Message").write("Write a long story of a dragon.")
    page.element("button", "Send").click()
    wait_for("the first words", lambda: len(body(page, "chat-log")) > len(question + answer) + 40)
    page.element("button", "Stop").click()
    wait_for("the end", lambda: not page.elements("button", "Stop"))
    page.element("button", "Clear").click()
    assert body(page, "chat-log") == ""


@needs_browser
def test_a_person_compares_texts(page: Browser, stack: Stack) -> None:
    load(stack, EMBEDDER)
    wait_for("the model", lambda: page.element("combobox", "Embedding model").choose(EMBEDDER))
    page.element("textbox", "Texts, one a line").write("A cat sits.\nA kitten is sitting.\nTaxes")
    page.element("button", "Compare").click()
    wait_for("the table", lambda: "384 dimensions" in body(page, "embed-facts"))
    rows = [line.split("\t") for line in body(page, "similarity-rows").splitlines()]
    assert [row[0] for row in rows] == ["1. A cat sits.", "2. A kitten is sitting.", "3. Taxes"]
    values = [[float(cell) for cell in row[1:]] for row in rows]
    assert [values[place][place] for place in range(3)] == [1, 1, 1]
    assert values[0][1] == values[1][0] > 0.5 > values[0][2]


@needs_browser
def test_a_person_sees_what_is_found_in_a_picture(
    page: Browser, stack: Stack, picture: Path
) -> None:
    with stack.channel() as channel:
        stub = mediapipe_pb2_grpc.MediapipeServiceStub(channel)
        request = mediapipe_pb2.ImageRequest(image_data=picture.read_bytes(), format="png")
        (face,) = stub.DetectFaces(request).faces
        (pose,) = stub.DetectPose(request).poses
        frame = mediapipe_pb2.VideoFrame(frame_data=picture.read_bytes(), format="png")
        ((mesh,),) = (answer.faces for answer in stub.StreamFaceMesh(iter([frame])))
    page.element("button", "Picture").choose_file(picture)
    wait_for("the face", lambda: body(page, "found").startswith("1 face: 9"))
    left, top, right, bottom = page.evaluate(DRAWN)
    wanted = (face.x, face.y, face.x + face.width, face.y + face.height)
    # The label is above the box.
    assert (left, right, bottom) == pytest.approx((wanted[0], wanted[2], wanted[3]), abs=0.02)
    assert top < wanted[1]
    page.element("radio", "Face mesh").click()
    boxed = (left, top, right, bottom)
    drawn = wait_for("the mesh", lambda: (now := page.evaluate(DRAWN)) != [*boxed] and now)
    assert drawn == pytest.approx(edges(mesh.landmarks), abs=0.02)
    page.element("radio", "Pose").click()
    wait_for("the pose", lambda: body(page, "found").startswith("1 pose"))
    seen = edges(point for point in pose.landmarks if point.visibility >= 0.5)
    assert page.evaluate(DRAWN) == pytest.approx(
        seen, abs=0.06
    )  # of a picture that was sent as JPEG
    page.element("radio", "Hands").click()
    wait_for("the answer", lambda: re.match(r"No hands found|\d hand", body(page, "found")))
    page.element("radio", "Faces").click()


@needs_browser
def test_a_person_starts_and_stops_the_webcam(page: Browser) -> None:
    page.evaluate(WATCHED % ("document.getElementById('found').innerText", "vision-facts"))
    page.element("radio", "Faces").click()
    page.element("button", "Start webcam").click()
    wait_for("three frames", lambda: len(page.evaluate("noted")) >= 3)
    assert all(found.startswith("1 face: ") for found in page.evaluate("noted"))
    assert page.evaluate(DRAWN)
    page.element("button", "Stop webcam").click()
    page.element("button", "Start webcam")
    assert body(page, "vision-message") == ""


@needs_browser
def test_a_webcam_that_does_not_play_is_let_go(page: Browser) -> None:
    page.evaluate(NO_PLAY)
    page.element("button", "Start webcam").click()
    told = "The camera does not start: no picture"
    wait_for("the refusal", lambda: body(page, "vision-message") == told)
    assert page.evaluate("tracks.map((one) => one.readyState)") == ["ended"]
    page.element("button", "Start webcam")
    page.evaluate("void (HTMLMediaElement.prototype.play = playing)")


@needs_browser
def test_a_picture_that_is_skipped_is_a_problem(
    page: Browser, picture: Path, tmp_path: Path
) -> None:
    page.evaluate(SKIPS)
    other = tmp_path / "other.png"  # to choose the same one again would be no change
    page.element("button", "Picture").choose_file(shutil.copy(picture, other))
    wait_for("the refusal", lambda: body(page, "vision-message") == "it came too late")
    assert body(page, "found") == ""
    page.evaluate("void (window.fetch = fetching)")


@needs_browser
def test_errors_are_told_in_words(page: Browser, tmp_path: Path) -> None:
    page.element("combobox", "Model to load").write("nobody/nothing")
    page.element("button", "Load").click()
    wait_for("the refusal", lambda: "nobody/nothing" in body(page, "models-message"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.element("button", "Picture").choose_file(broken)
    wait_for("the refusal", lambda: "cannot read broken.png" in body(page, "vision-message"))


@needs_browser
def test_the_page_is_for_all_and_keeps_to_itself(page: Browser, stack: Stack) -> None:
    """Names for screen readers, no address but Envoy's, and nothing that its policy refuses."""
    assert page.unnamed() == []
    own = f"http://{stack.addresses['envoy']}/"
    assert [one for one in page.requests if not one.startswith((own, "data:", "blob:"))] == []
    # Chromium tells of each answer that is an error.
    told = [one for one in page.errors if not one.startswith("Failed to load resource")]
    assert told == []
    # The policy holds: neither markup nor another address.
    for code in ("document.body.innerHTML = '<b>x</b>'", "fetch('http://example.invalid/')"):
        with pytest.raises(BrowserError, match="TypeError"):
            page.evaluate(f"(async () => {code})()")


@needs_browser
def test_with_keys_the_page_asks_for_one(
    envoy_ports: Ports, start: Start, tmp_path: Path, stack: Stack
) -> None:
    (tmp_path / "api_keys.txt").write_text(f"person {KEY}\n")
    options = EnvoyOptions(callers=tmp_path)
    checks = tmp_path / "checks"
    callers.CallerFiles(checks, tmp_path, options.caller_kinds).write()
    start(native_config(envoy_ports, options, generated=tmp_path, checks=checks))
    assert BINARY
    with browser(BINARY) as page:
        page.open(f"http://127.0.0.1:{envoy_ports.envoy}/")
        wait_for("the request", lambda: "An API key is needed" in body(page, "connection"))
        page.element("textbox", "API key").write("wrong" * 4)
        page.element("button", "Use key").click()
        wait_for("the refusal", lambda: "not known here" in body(page, "connection"))
        page.element("textbox", "API key").write("schlüssel")
        page.element("button", "Use key").click()
        told = "The API key has characters that no key has."
        wait_for("the refusal", lambda: body(page, "connection") == told)
        page.element("textbox", "API key").write(KEY)
        page.press("Enter")
        wait_for("the models", lambda: "Connected" in body(page, "connection"))
        stored = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
        assert stored == [0, 0, ""]


# What Envoy and http_svc send


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/?x=y"])
def test_the_page_has_headers_that_keep_it_to_itself(stack: Stack, path: str) -> None:
    answer, content = get(stack.addresses["envoy"], path)
    assert answer.status == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert int(answer.headers["content-length"]) == len(content) > 1000
    head, nothing = get(stack.addresses["envoy"], path, "HEAD")
    assert (head.status, nothing) == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/page.html",
        "/static/page.js",
        "/page.js/",
        "/pageXjs",
        "//page.js",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page.js/../../http_svc/settings.py",
        "/.git/config",
    ],
)
def test_no_other_file_is_reached(stack: Stack, path: str) -> None:
    answer, content = get(stack.addresses["envoy"], path)
    assert answer.status in (400, 404)
    assert b"root:" not in content
    assert b"import" not in content


def test_the_page_takes_nothing(stack: Stack) -> None:
    for method in ("POST", "PUT", "DELETE"):
        answer, _ = get(stack.addresses["envoy"], "/", method)
        assert answer.status == 404
