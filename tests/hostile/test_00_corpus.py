"""No input makes a call fail as a fault of the service, ends a process or delays another caller."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ml import mediapipe_pb2, model_management_pb2, transformers_pb2
from ml.model_management_pb2 import LoadModelRequest, UnloadModelRequest
from ml.model_management_pb2_grpc import ModelManagementServiceStub
from tests.support.attack import Attacks, Seen
from tests.support.hostile_messages import json_bodies, metadata, serialized
from tests.support.http_calls import post
from tests.support.stack import CHAT, ROOT, Stack

SERVICES = (model_management_pb2, transformers_pb2, mediapipe_pb2, health_pb2, reflection_pb2)
RPCS = [
    rpc
    for module in SERVICES
    for service in module.DESCRIPTOR.services_by_name.values()
    for rpc in service.methods
]
CODE = grpc.StatusCode
# They would say that the service is at fault, or gone.
FAULTS = {CODE.INTERNAL, CODE.UNKNOWN, CODE.DATA_LOSS, CODE.UNAVAILABLE}
# A stream without end is left after this many responses; a watch has one at first.
RESPONSES = 3
# A call that neither ends nor responds is the service's fault; it is generous for a busy machine.
SECONDS = 60
bounded = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def chat(stack: Stack) -> Iterator[None]:
    """A model that generates, beside the embedding model."""
    with stack.channel() as channel:
        stub = ModelManagementServiceStub(channel)
        stub.LoadModel(LoadModelRequest(model_id=CHAT, pipeline_type="text-generation"))
        yield
        stub.UnloadModel(UnloadModelRequest(model_id=CHAT))


def call(
    channel: grpc.Channel, rpc: MethodDescriptor, sent: list[bytes], pairs: list[tuple[str, Any]]
) -> tuple[grpc.StatusCode, str]:
    """Status and message of a call; OK for one that is left while it responds."""
    sides = tuple(
        "stream" if streams else "unary" for streams in (rpc.client_streaming, rpc.server_streaming)
    )
    path = f"/{rpc.containing_service.full_name}/{rpc.name}"
    start = getattr(channel, "_".join(sides))(path)
    request = iter(sent) if rpc.client_streaming else sent[0]
    enough = 1 if rpc.name.startswith("Watch") else RESPONSES
    try:
        answer = start(request, metadata=pairs, timeout=SECONDS)
        if rpc.server_streaming:
            for count, _ in enumerate(answer, 1):
                if count == enough:
                    answer.cancel()
                    break
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return CODE.OK, ""


def unloads(rpc: MethodDescriptor, *sent: bytes) -> bool:
    """Whether a call may unload a model that the bystander and the other calls need."""
    return rpc.name == "UnloadModel" and any(b"/" in each for each in sent)


def check_lives(seen: Seen) -> None:
    """All processes that were there still are."""
    assert seen.report is not None
    ended = [each.name for each in seen.report.memory.values() if each.before and not each.after]
    assert not ended, f"{', '.join(ended)} ended"


def send_messages(channel: grpc.Channel, rpc: MethodDescriptor, statuses: Counter[str]) -> None:
    """Calls an RPC with all that Hypothesis makes for it."""

    @bounded
    @given(st.lists(serialized(rpc.input_type), min_size=1, max_size=3), metadata())
    def send(sent: list[bytes], pairs: list[tuple[str, Any]]) -> None:
        if unloads(rpc, *sent):
            return
        code, message = call(channel, rpc, sent, pairs)
        statuses[code.name] += 1
        assert code not in FAULTS, f"{rpc.full_name}: {code.name}: {message[:500]}"
        assert code is not CODE.DEADLINE_EXCEEDED, f"{rpc.full_name} said nothing"
        for secret in ("Traceback", str(ROOT), tempfile.gettempdir()):
            assert secret not in message, f"{rpc.full_name}: {message[:500]}"
        assert len(message) < 8_192, f"{rpc.full_name}: a message of {len(message)}"

    send()


def send_bodies(address: str, rpc: MethodDescriptor, statuses: Counter[str]) -> None:
    """Posts to an RPC all that Hypothesis makes."""
    path = f"{rpc.containing_service.full_name}/{rpc.name}"
    pieces = None
    if rpc.server_streaming:
        # A watch has one response at first, and more only when something happens.
        pieces = 1 if rpc.name.startswith("Watch") else RESPONSES

    @bounded
    @given(json_bodies(rpc.input_type))
    def send(body: bytes) -> None:
        if unloads(rpc, body):
            return
        answer, text = post(address, path, body, pieces=pieces)
        statuses[str(answer.status)] += 1
        assert answer.status < 500 or answer.status == 501, f"{path}: {text[:500]!r}"
        assert b"Traceback" not in text

    send()


def counted(statuses: Counter[str]) -> str:
    """How often each status was seen."""
    return ", ".join(f"{count} {status}" for status, count in statuses.most_common())


def test_no_message_is_a_fault_of_the_service(attack: Attacks, stack: Stack, chat: None) -> None:
    """Any bytes to any RPC, with any metadata, get a status that blames the caller."""
    statuses: Counter[str] = Counter()
    with attack("00 any message", stack) as seen, stack.channel() as channel:
        for rpc in RPCS:
            send_messages(channel, rpc, statuses)
    check_lives(seen)
    seen.say(f"{sum(statuses.values())} calls of {len(RPCS)} RPCs: {counted(statuses)}")


def test_no_json_is_a_fault_of_the_service(attack: Attacks, stack: Stack, chat: None) -> None:
    """Any body to any transcoded RPC gets a status that blames the caller."""
    statuses: Counter[str] = Counter()
    unary = [rpc for rpc in RPCS if rpc.full_name.startswith("ml.") and not rpc.client_streaming]
    with attack("00 any JSON", stack) as seen:
        for rpc in unary:
            send_bodies(stack.addresses["envoy"], rpc, statuses)
    check_lives(seen)
    seen.say(f"{sum(statuses.values())} bodies to {len(unary)} RPCs: {counted(statuses)}")
