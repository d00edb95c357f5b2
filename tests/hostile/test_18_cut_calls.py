"""A call that ends without a whole message is answered at once, whatever its kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from google.protobuf.descriptor import MethodDescriptor

from ml import mediapipe_pb2, model_management_pb2, transformers_pb2
from tests.support.attack import Attacks
from tests.support.http2 import CUT_CALLS, DATA, END_STREAM, HEADERS, RawConnection, cut_call
from tests.support.http_calls import post
from tests.support.stack import Stack

SERVICES = {"model_mgmt": model_management_pb2, "text": transformers_pb2, "vision": mediapipe_pb2}
WHY = "the call ended without a whole message"
# Streams without a message have nothing to answer, and some RPCs are not built.
OK, INVALID_ARGUMENT, UNIMPLEMENTED = "0", "3", "12"


def rpcs(name: str) -> Iterator[MethodDescriptor]:
    for service in SERVICES[name].DESCRIPTOR.services_by_name.values():
        yield from service.methods


def path_of(rpc: MethodDescriptor) -> str:
    return f"/{rpc.containing_service.full_name}/{rpc.name}"


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_answers(attack: Attacks, stack: Stack, name: str) -> None:
    """A call that ends without a whole message gets a status from the service itself."""
    with attack(f"18 cut calls of {name}", stack) as seen:
        count = 0
        for rpc in rpcs(name):
            for end in CUT_CALLS:
                status, message = cut_call(stack.addresses[name], path_of(rpc), end)
                if rpc.client_streaming:
                    assert status in (OK, UNIMPLEMENTED), (rpc.name, end, message)
                else:
                    assert (status, message) == (INVALID_ARGUMENT, WHY), (rpc.name, end)
                count += 1
        seen.say(f"answered: {count} calls that ended without a whole message")


def test_they_are_answered_through_envoy(attack: Attacks, stack: Stack) -> None:
    """A call that ends without a whole message gets a status through Envoy too."""
    envoy = stack.addresses["envoy"]
    with attack("18 cut calls through Envoy", stack) as seen:
        count = 0
        for rpc in (rpc for name in SERVICES for rpc in rpcs(name)):
            for end, last in CUT_CALLS.items():
                with RawConnection(envoy) as connection:
                    connection.open_call(1, path_of(rpc))
                    connection.send(DATA, END_STREAM, 1, last)
                    answer = next(
                        frame
                        for frame in connection.frames()
                        if frame.stream == 1 and frame.ends_stream
                    )
                assert answer.kind == HEADERS, (rpc.name, end)  # trailers, no reset
                count += 1
            if not rpc.client_streaming:
                assert web_status(envoy, rpc) == INVALID_ARGUMENT
        seen.say(f"answered: {count} calls")


def web_status(envoy: str, rpc: MethodDescriptor) -> str:
    """The status of a call by gRPC-Web whose message is cut: the trailers are its body."""
    kind = "application/grpc-web+proto"
    cut = CUT_CALLS["half a message"]
    answer, body = post(envoy, path_of(rpc)[1:], cut, content_type=kind, accept=kind)
    if status := answer.headers.get("grpc-status"):
        return str(status)
    _, _, rest = body.partition(b"grpc-status:")
    with suppress(IndexError):
        return rest.split()[0].decode()
    return ""
