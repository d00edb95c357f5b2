"""Who calls is known and checked, and one caller leaves room for the others."""

from __future__ import annotations

import json
import queue
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from ml import common_pb2 as common_pb
from ml import mediapipe_pb2 as vision_pb
from ml import mediapipe_pb2_grpc as vision_grpc
from ml import model_management_pb2 as models_pb
from ml import model_management_pb2_grpc as models_grpc
from ml import transformers_pb2 as text_pb
from ml import transformers_pb2_grpc as text_grpc
from tests.integration.test_envoy_tls import secure_channel
from tests.support.attack import Attacks
from tests.support.folders import MakeFolder
from tests.support.http_calls import post, post_json
from tests.support.stack import CHAT, MODEL_MGMT, Stack, is_healthy, stack_in, wait_for
from tools.dev_certs import make_certificates

ALICE, BOB, CAROL = (f"{name}-{'0123456789' * 2}" for name in ("alice", "bob", "carol"))
KEYS = f"alice {ALICE}\nbob {BOB}\n"
MAX_STREAMS = 4
MAX_WAITING = 3
RPC = f"{MODEL_MGMT}/GetLoadedModels"
FRAME = vision_pb.VideoFrame(
    frame_data=np.zeros((32, 32, 3), np.uint8).tobytes(), format="rgb", width=32, height=32
)

Metadata = tuple[tuple[str, str], ...]


def key(secret: str) -> Metadata:
    return (("authorization", f"Bearer {secret}"),)


@pytest.fixture(scope="module")
def folder(module_folder: MakeFolder) -> Path:
    """The operator's files of who may call."""
    folder = module_folder("callers")
    (folder / "api_keys.txt").write_text(KEYS)
    (folder / "client_names.txt").write_text("ml-client\n")
    return folder


@pytest.fixture(scope="module")
def certificates(module_folder: MakeFolder) -> Path:
    folder = module_folder("tls")
    make_certificates(folder)
    return folder


@pytest.fixture(scope="module")
def keyed(
    models: Path, folder: Path, certificates: Path, module_folder: MakeFolder
) -> Iterator[Stack]:
    """A stack that asks for keys and names, with few places for streams."""
    options = ("--callers", str(folder), "--tls", str(certificates))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISION_MAX_STREAMS", str(MAX_STREAMS))
        patch.setenv("TEXT_MAX_WAITING", str(MAX_WAITING))
        with stack_in(module_folder("keyed"), *options) as running:
            running.wait_serving()
            yield running


def listed(channel: grpc.Channel, metadata: Metadata = ()) -> tuple[grpc.StatusCode, str]:
    """The status of a GetLoadedModels."""
    stub = models_grpc.ModelManagementServiceStub(channel)
    try:
        stub.GetLoadedModels(common_pb.EmptyRequest(), timeout=30, metadata=metadata)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


class Video:
    """A stream that sends a frame when it is told to."""

    def __init__(self, channel: grpc.Channel, metadata: Metadata) -> None:
        self._frames: queue.SimpleQueue[vision_pb.VideoFrame | None] = queue.SimpleQueue()
        stub = vision_grpc.MediapipeServiceStub(channel)
        self._answers = stub.StreamFaceMesh(iter(self._frames.get, None), metadata=metadata)

    def frame(self) -> tuple[grpc.StatusCode, str]:
        """Sends a frame; the status, if the stream has ended."""
        self._frames.put(FRAME)
        try:
            next(self._answers)
        except grpc.RpcError as error:
            return error.code(), error.details()
        return grpc.StatusCode.OK, ""

    def close(self) -> None:
        self._answers.cancel()
        self._frames.put(None)


def test_only_who_has_a_key_is_served(keyed: Stack, attack: Attacks) -> None:
    """A call without a known key is UNAUTHENTICATED, and no key is in a log."""
    address = keyed.addresses["envoy"]
    with (
        attack("11 calls without a key", keyed, metadata=dict(key(BOB))) as seen,
        keyed.channel() as channel,
    ):
        for _ in range(200):
            code, message = listed(channel)
            assert code is grpc.StatusCode.UNAUTHENTICATED
            assert "no API key" in message
            code, message = listed(channel, key("x" * 32))
            assert code is grpc.StatusCode.UNAUTHENTICATED
            assert "not known" in message
        # A caller cannot say who it is.
        assert listed(channel, (("x-ml-caller", "bob"),))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert listed(channel, (*key(ALICE), ("x-ml-caller", "mallory")))[0] is grpc.StatusCode.OK
        # A probe needs no key; what lists the interface does.
        assert is_healthy(channel, MODEL_MGMT)
        reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        with pytest.raises(grpc.RpcError) as refused:
            list(channel.stream_stream(reflection)(iter([b""]), timeout=30))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

        status, body = post_json(address, RPC, {})
        assert (status, body["code"]) == (401, grpc.StatusCode.UNAUTHENTICATED.value[0])
        assert "Bearer KEY" in body["message"]
        assert post_json(address, RPC, {}, authorization=f"Bearer {ALICE}")[0] == 200
        # The same at the paths of http_svc, whose errors are OpenAI's.
        texts = {"model": "nobody/nothing", "input": "x"}
        for headers in ({}, {"x-api-key": "x" * 32}, {"authorization": f"Bearer {'x' * 32}"}):
            status, body = post_json(address, "v1/embeddings", texts, **headers)
            assert (status, body["error"]["code"]) == (401, "invalid_api_key")
            status, body = post_json(address, "v1/messages", texts, **headers)
            assert (status, body["type"]) == (401, "error")
            assert body["error"]["type"] == "authentication_error"
        # Nor can a caller of these say who it is, or where it calls from.
        forged = {"x-ml-caller": "mallory", "x-forwarded-for": "203.0.113.6"}
        for headers in ({"x-api-key": ALICE}, {"authorization": f"Bearer {ALICE}"}):
            status, body = post_json(address, "v1/embeddings", texts, **headers, **forged)
            assert (status, body["error"]["code"]) == (404, "model_not_found")
        web, _ = post(address, RPC, bytes(5), content_type="application/grpc-web+proto")
        assert web.headers["grpc-status"] == "16"
        seen.say("UNAUTHENTICATED without a known key")

    def callers() -> set[str]:
        return {str(line.get("caller")) for line in keyed.access_log()}

    wait_for("lines of the access log", lambda: {"alice", "bob"} <= callers())
    service_log = keyed.logs / "model_mgmt_svc.log"
    wait_for("a line of the service", lambda: '"caller": "alice"' in service_log.read_text())
    http_log = keyed.logs / "http_svc.log"
    wait_for("a line of http_svc", lambda: '"caller": "alice"' in http_log.read_text())
    # Alice has called text_svc through http_svc alone.
    text_log = keyed.logs / "text_svc.log"
    wait_for("a line of text_svc", lambda: '"caller": "alice"' in text_log.read_text())
    for log in keyed.logs.iterdir():
        text = log.read_text(errors="replace")
        for secret in (ALICE, BOB):
            assert secret not in text, log.name
        for claimed in ("mallory", "203.0.113.6"):
            assert claimed not in text, log.name


def test_keys_change_without_a_restart(keyed: Stack, folder: Path, attack: Attacks) -> None:
    """A key that is taken away stops working, a new one works, and streams go on."""
    file = folder / "api_keys.txt"
    with (
        attack("11 keys change", keyed, metadata=dict(key(BOB))) as seen,
        keyed.channel() as channel,
    ):
        video = Video(channel, key(ALICE))
        assert video.frame()[0] is grpc.StatusCode.OK
        file.write_text("this is no list of keys\n")
        wait_for("a word on it", lambda: "what it was stays in force" in keyed.output())
        assert listed(channel, key(ALICE))[0] is grpc.StatusCode.OK
        file.write_text(f"bob {BOB}\ncarol {CAROL}\n")
        wait_for("the new key", lambda: listed(channel, key(CAROL))[0] is grpc.StatusCode.OK)
        assert listed(channel, key(ALICE))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert video.frame()[0] is grpc.StatusCode.OK
        video.close()
        file.write_text(KEYS)
        wait_for("the old key", lambda: listed(channel, key(ALICE))[0] is grpc.StatusCode.OK)
        assert listed(channel, key(CAROL))[0] is grpc.StatusCode.UNAUTHENTICATED
        seen.say("keys changed in place, a stream went on")


def test_only_names_on_the_list_pass_the_mtls_port(
    keyed: Stack, folder: Path, certificates: Path, attack: Attacks
) -> None:
    """A certificate of the authority whose name is not on the list is PERMISSION_DENIED."""
    file = folder / "client_names.txt"
    with (
        attack("11 names of certificates", keyed, metadata=dict(key(BOB))) as seen,
        secure_channel(keyed, "envoy_mtls", certificates, client="client") as channel,
        secure_channel(keyed, "envoy_tls", certificates) as without,
    ):
        # The certificate is enough there; TLS alone is not.
        assert listed(channel)[0] is grpc.StatusCode.OK
        assert listed(without)[0] is grpc.StatusCode.UNAUTHENTICATED
        assert listed(without, key(ALICE))[0] is grpc.StatusCode.OK
        file.write_text("another.example\n")

        def refused() -> bool:
            return listed(channel)[0] is grpc.StatusCode.PERMISSION_DENIED

        wait_for("the refusal", refused)
        assert "CN=ml-client, is not among the allowed ones" in listed(channel)[1]
        file.write_text("ml-client\n")
        wait_for("the name's return", lambda: listed(channel)[0] is grpc.StatusCode.OK)
        seen.say("PERMISSION_DENIED for a name that is not on the list")
    lines = wait_for(
        "lines of the access log",
        lambda: [line for line in keyed.access_log() if line.get("caller") == "ml-client"],
    )
    assert lines[0]["certificate"] == "CN=ml-client"


def test_a_port_that_is_open_without_keys_is_told(
    models: Path, tmp_path: Path, attack: Attacks
) -> None:
    """Whoever opens the ports without keys is warned."""
    with (
        stack_in(tmp_path, "--address", "0.0.0.0") as running,
        attack("11 open port", running, bystander=None) as seen,
    ):
        said = "listen on 0.0.0.0 without API keys"
        assert f"WARNING: the ports for callers {said}" in running.output()
        log = (running.logs / "envoy.log").read_text().splitlines()
        warnings = [json.loads(line) for line in log if said in line]
        assert warnings[0]["level"] == "warning"
        seen.say("an open port without keys is a warning")


def test_one_caller_keeps_nobody_out_of_the_streams(keyed: Stack, attack: Attacks) -> None:
    """Whoever has all places for streams gives up to half of them to another caller who asks."""
    full = f"{MAX_STREAMS} streams are open, which is the limit"
    with (
        attack("11 all streams", keyed, metadata=dict(key(BOB))) as seen,
        keyed.channel() as channel,
    ):
        alice = [Video(channel, key(ALICE)) for _ in range(MAX_STREAMS)]
        # With nobody else there, one may have them all, and no more.
        assert [one.frame()[0] for one in alice] == [grpc.StatusCode.OK] * MAX_STREAMS
        assert Video(channel, key(ALICE)).frame() == (grpc.StatusCode.RESOURCE_EXHAUSTED, full)
        bob = [Video(channel, key(BOB)) for _ in range(MAX_STREAMS // 2)]
        assert all(one.frame()[0] is grpc.StatusCode.OK for one in bob)
        assert Video(channel, key(BOB)).frame() == (grpc.StatusCode.RESOURCE_EXHAUSTED, full)
        # The newest have left, and were told why; the others go on.
        for one in alice[MAX_STREAMS // 2 :]:
            code, message = one.frame()
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert f"more than its half, {MAX_STREAMS // 2} of {MAX_STREAMS}" in message
        assert all(one.frame()[0] is grpc.StatusCode.OK for one in alice[: MAX_STREAMS // 2])
        for one in (*alice, *bob):
            one.close()
        seen.say(f"{MAX_STREAMS // 2} of {MAX_STREAMS} streams went to the second caller")


def test_one_caller_keeps_nobody_out_of_a_text_model(keyed: Stack, attack: Attacks) -> None:
    """Whoever fills a model's queue makes room, and a new caller's turn comes next."""
    with (
        attack("11 all text slots", keyed, metadata=dict(key(BOB))) as seen,
        keyed.channel() as channel,
    ):
        models = models_grpc.ModelManagementServiceStub(channel)
        load = models_pb.LoadModelRequest(
            model_id=CHAT, pipeline_type="chat", options={"max_sequences": "1"}
        )
        models.LoadModel(load, timeout=300, metadata=key(ALICE))
        stub = text_grpc.TransformersServiceStub(channel)

        def generate(secret: str, tokens: int) -> Iterator[text_pb.TextResponse]:
            request = text_pb.TextRequest(model=CHAT, prompt="The sea", max_length=tokens)
            answers: Iterator[text_pb.TextResponse] = stub.GenerateText(
                request, timeout=300, metadata=key(secret)
            )
            return answers

        running = generate(ALICE, 1500)
        next(running)
        waiting = [generate(ALICE, 1500) for _ in range(MAX_WAITING)]
        metrics = keyed.addresses["text_metrics"]
        wait_for("a full queue", lambda: gauge(metrics, "text_waiting_answers") == MAX_WAITING)
        with pytest.raises(grpc.RpcError) as refused:
            next(generate(ALICE, 8))
        assert f"{MAX_WAITING} wait, which is the limit" in refused.value.details()
        bob = generate(BOB, 8)
        # The newest of the queue has made room.
        ended = error_of(waiting[-1])
        assert ended.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "another caller has asked" in ended.details()
        running.cancel()  # type: ignore[attr-defined]
        assert [one.done for one in bob][-1]
        # Of those that came before it, no more than the one that may run at once has begun.
        assert gauge(metrics, "text_waiting_answers") >= MAX_WAITING - 2
        for one in waiting:
            one.cancel()  # type: ignore[attr-defined]
        unload = models_pb.UnloadModelRequest(model_id=CHAT)
        models.UnloadModel(unload, timeout=60, metadata=key(ALICE))
        seen.say("a second caller was next, ahead of a full queue")


def gauge(address: str, name: str) -> float:
    """The sum of a metric over its labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))


def error_of(answers: Iterator[text_pb.TextResponse]) -> grpc.RpcError:
    """The error that a stream ends with."""
    with pytest.raises(grpc.RpcError) as ended:
        next(answers)
    return ended.value
