"""Calls of a service that is down: Envoy holds them until it has started."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ml import mediapipe_pb2, transformers_pb2
from stack.envoy import Admin
from stack.envoy_config import WAIT_SECONDS, EnvoyOptions, native_config
from stack.ports import Ports, accepts
from tests.support.http_calls import post, post_json
from tests.support.own_envoy import entry_point, manager_of
from tests.support.processes import stack_ports
from tests.support.stack import TEXT, open_channel, wait_for

UNARY, ANSWERS, STREAM = "Infer", "GenerateText", "TranscribeStream"
PATIENCE = 60.0  # ends a test that hangs


class TextService:
    """A small service in text_svc's place, which can be started and killed.

    Attributes:
        calls: how many calls of each RPC have arrived.
        left: the deadline of the last call with one, in seconds from its arrival.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: grpc.Server | None = None
        self.calls: Counter[str] = Counter()
        self.left = 0.0
        self.hold = threading.Event()
        self.hold.set()

    def _arrived(self, name: str, context: Any) -> None:
        self.calls[name] += 1
        self.left = context.time_remaining()
        self.hold.wait(PATIENCE)

    def _unary(self, request: bytes, context: Any) -> bytes:
        self._arrived(UNARY, context)
        return transformers_pb2.InferResponse(text=str(len(request))).SerializeToString()

    def _answers(self, request: bytes, context: Any) -> Iterator[bytes]:
        self._arrived(ANSWERS, context)
        yield from (b"", b"", str(len(request)).encode())

    def _stream(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        self._arrived(STREAM, context)
        for request in requests:
            yield str(len(request)).encode()

    def start(self) -> None:
        server = grpc.server(ThreadPoolExecutor(64))
        checks = health.HealthServicer()
        checks.set(TEXT, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        handlers = {
            UNARY: grpc.unary_unary_rpc_method_handler(self._unary),
            ANSWERS: grpc.unary_stream_rpc_method_handler(self._answers),
            STREAM: grpc.stream_stream_rpc_method_handler(self._stream),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(TEXT, handlers),))
        assert server.add_insecure_port(f"127.0.0.1:{self._port}")
        server.start()
        self._server = server

    def kill(self) -> None:
        if self._server:
            self._server.stop(0).wait()
        self._server = None


class Door:
    """An Envoy, the service behind it, and a caller."""

    def __init__(self, ports: Ports, channel: grpc.Channel) -> None:
        self.address = f"127.0.0.1:{ports.envoy}"
        self.admin = Admin(ports.envoy_admin)
        self.service = TextService(ports.text)
        self._channel = channel
        self._threads = ThreadPoolExecutor(64)

    def unary(self, size: int = 10, seconds: float | None = None) -> Future[Any]:
        call = self._channel.unary_unary(f"/{TEXT}/{UNARY}")
        return self._threads.submit(lambda: call(b"x" * size, timeout=seconds))

    def answers(self, seconds: float | None = None) -> Future[list[bytes]]:
        call = self._channel.unary_stream(f"/{TEXT}/{ANSWERS}")
        return self._threads.submit(lambda: list(call(b"x", timeout=seconds)))

    def stream(self, size: int, count: int = 20, seconds: float | None = None) -> Future[Any]:
        call = self._channel.stream_stream(f"/{TEXT}/{STREAM}")

        def messages() -> Iterator[bytes]:
            for _ in range(count):
                yield b"x" * size
                time.sleep(0.033)  # as a camera does

        return self._threads.submit(lambda: list(call(messages(), timeout=seconds)))

    def told_failed(self) -> bool:
        """Whether Envoy has been told that the service has failed."""
        entries = json.loads(self.admin._ask("GET", "/runtime"))["entries"]
        return entries.get("ml.failed.text", {}).get("final_value") == "100"

    def serving(self) -> bool:
        with contextlib.suppress(OSError):  # the page does not respond in time
            return "text" in self.admin.healthy_clusters()
        return False


Open = Callable[[int], Door]


@pytest.fixture
def open_door(tmp_path: Path) -> Iterator[Open]:
    """Starts an Envoy whose calls wait for so many seconds, with no service behind it."""
    with contextlib.ExitStack() as ends:

        def run(wait_seconds: int) -> Door:
            ports = stack_ports()
            options = EnvoyOptions(wait_seconds=wait_seconds)
            config = native_config(ports, options, generated=tmp_path)
            process = entry_point(tmp_path, config, WAIT_SECONDS=str(wait_seconds))
            ends.callback(process.wait)
            ends.callback(os.killpg, process.pid, signal.SIGKILL)
            wait_for("the start of Envoy", lambda: accepts(ports.envoy))
            door = Door(ports, ends.enter_context(open_channel(f"127.0.0.1:{ports.envoy}")))
            ends.callback(door.service.kill)
            return door

        yield run


def failure(call: Future[Any]) -> tuple[grpc.StatusCode, str]:
    """Code and message of a call that fails."""
    error = call.exception(PATIENCE)
    assert isinstance(error, grpc.RpcError), error
    return error.code(), error.details()


def calls_of_each_kind(door: Door, size: int = 500_000) -> Callable[[], None]:
    """Makes them; returns what checks that each was answered, in full and once."""
    before = door.service.calls.copy()
    unary, answers = door.unary(size), door.answers()
    streams = {length: door.stream(length) for length in (100, 100_000, 900_000)}

    def check() -> None:
        answer = transformers_pb2.InferResponse.FromString(unary.result(PATIENCE))
        assert answer.text == str(size)
        assert answers.result(PATIENCE) == [b"", b"", b"1"]
        for length, stream in streams.items():
            assert stream.result(PATIENCE) == [str(length).encode()] * 20
        assert door.service.calls - before == {UNARY: 1, ANSWERS: 1, STREAM: 3}

    return check


def test_calls_wait_for_the_first_start_and_for_a_restart(open_door: Open) -> None:
    """Unary calls, streams of responses and of requests, and JSON."""
    door = open_door(WAIT_SECONDS)
    json_call = door._threads.submit(
        lambda: post(door.address, f"{TEXT}/{UNARY}", json.dumps({"model": "m"}).encode())
    )
    check = calls_of_each_kind(door, 3 << 20)
    time.sleep(1)
    assert not door.service.calls
    door.service.start()
    answer, body = json_call.result(PATIENCE)
    assert (answer.status, json.loads(body)["text"]) == (200, "3")
    door.service.calls[UNARY] -= 1
    check()
    wait_for("health", door.serving)
    # Envoy has not noticed yet that it is gone.
    door.service.kill()
    check = calls_of_each_kind(door)
    time.sleep(1)
    door.service.start()
    check()


def test_a_deadline_holds_while_a_call_waits(open_door: Open) -> None:
    door = open_door(WAIT_SECONDS)
    start = time.monotonic()
    calls: list[Future[Any]] = [
        door.unary(seconds=1),
        door.answers(seconds=1),
        door.stream(10, seconds=1),
    ]
    late, later = door.answers(seconds=50), door.stream(10, seconds=50)
    for call in calls:
        assert failure(call)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - start < 10
    door.service.start()
    late.result(PATIENCE)
    later.result(PATIENCE)
    assert 0 < door.service.left < 49.1  # the service knows what is left of it


def test_a_call_that_has_reached_a_service_is_not_made_again(open_door: Open) -> None:
    door = open_door(WAIT_SECONDS)
    door.service.start()
    wait_for("health", door.serving)
    door.service.hold.clear()
    calls = [door.unary(), door.answers(), door.stream(10)]
    wait_for("three calls", lambda: door.service.calls.total() == 3)
    door.service.kill()
    door.service.start()
    for call in calls:
        code, _ = failure(call)
        assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), code
    door.service.hold.set()
    assert door.service.calls.total() == 3


def test_a_service_that_has_failed_is_not_waited_for(open_door: Open) -> None:
    """Until it serves again: then its calls wait for its next start, too."""
    door = open_door(2)
    waited = door.unary()
    paths = ("v1/messages", "v1/messages/count_tokens?x=y", "v1/messages2")
    with ThreadPoolExecutor(len(paths)) as threads:
        errors = list(threads.map(lambda path: post_json(door.address, path, {}), paths))
    code, message = failure(waited)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "did not start within 2 s" in message
    # Each path of http_svc has its errors as its own clients expect them.
    for status, body in errors:
        assert (status, body["error"]["message"]) == (503, message)
    kinds = [(body.get("type"), body["error"]["type"]) for _, body in errors]
    assert kinds == [*[("error", "overloaded_error")] * 2, (None, "server_error")]

    wait_for("the news of its failure", door.told_failed)
    start = time.monotonic()
    for call in (door.unary(), door.answers(), door.stream(10)):
        assert failure(call) == (grpc.StatusCode.UNAVAILABLE, "the service has failed and is down")
    assert time.monotonic() - start < 1.5
    door.service.start()
    wait_for("health", door.serving)
    wait_for("the news of its return", lambda: not door.told_failed())
    door.service.kill()
    call = door.unary()
    time.sleep(0.5)
    door.service.start()
    call.result(PATIENCE)


def test_calls_that_wait_hold_little_memory(open_door: Open) -> None:
    """Their callers keep what they stream: Envoy holds windows and buffers, 1 MiB each at most."""
    door = open_door(WAIT_SECONDS)

    def allocated() -> int:
        return int(json.loads(door.admin._ask("GET", "/memory"))["allocated"])

    before, streams = allocated(), 16
    calls = [door.stream(1 << 20, 16) for _ in range(streams)]
    time.sleep(2)
    assert allocated() - before < streams * (3 << 20)
    door.service.start()
    for call in calls:
        assert len(call.result(PATIENCE)) == 16


def routes_of(listener: dict[str, Any]) -> list[dict[str, Any]]:
    manager = listener["filter_chains"][0]["filters"][-1]["typed_config"]
    routes: list[dict[str, Any]] = manager["route_config"]["virtual_hosts"][0]["routes"]
    return routes


def test_the_wait_is_a_setting_and_a_request_has_time_beyond_it() -> None:
    config = native_config(Ports(), EnvoyOptions(wait_seconds=7))
    (wait,) = (one for one in config["static_resources"]["listeners"] if one["name"] == "wait")
    waits = [
        route["metadata"]["filter_metadata"]["envoy.filters.http.lua"]["wait_seconds"]
        for route in routes_of(wait)
        if "metadata" in route
    ]
    assert waits == [7] * 7
    assert manager_of(config)["request_timeout"] == "22s"
    assert "not complete within 22 s" in json.dumps(manager_of(config))


@pytest.mark.parametrize("file", [mediapipe_pb2, transformers_pb2], ids=["vision", "text"])
def test_streams_of_requests_have_the_same_priority_after_a_wait(file: Any) -> None:
    listeners = native_config(Ports())["static_resources"]["listeners"]
    (wait,) = (one for one in listeners if one["name"] == "wait")
    (service,) = file.DESCRIPTOR.services_by_name.values()
    described = descriptor_pb2.ServiceDescriptorProto()
    service.CopyToProto(described)
    for method in described.method:
        path = f"/{service.full_name}/{method.name}"

        def matches(match: dict[str, Any], path: str = path) -> bool:
            if "prefix" in match:
                return path.startswith(match["prefix"])
            return "safe_regex" in match and bool(re.fullmatch(match["safe_regex"]["regex"], path))

        route = next(one for one in routes_of(wait) if matches(one["match"]))
        assert (route["route"].get("priority") == "HIGH") is method.client_streaming, method.name
