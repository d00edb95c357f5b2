"""What all requests have in common: limits, errors, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from starlette.datastructures import Headers

from http_svc.bodies import MAX_VALUES, BodyReader
from shared.caller import CALLER_KEY, set_caller
from shared.errors import QueueFullError, UnavailableError
from tests.unit.http.conftest import Door, served_with

CHAT = "/v1/chat/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "Say hello."}]}


async def test_a_client_that_leaves_ends_the_work(served: Door) -> None:
    served.script.endless = True
    async with served.client.stream("POST", CHAT, json=HELLO | {"stream": True}) as answer:
        async for line in answer.aiter_lines():
            if "more" in line:
                break
    await asyncio.wait_for(served.script.cancelled.wait(), 30)


async def test_a_client_that_leaves_before_its_answer_ends_the_work(served: Door) -> None:
    served.script.endless = True
    asking = asyncio.create_task(served.client.post(CHAT, json=HELLO))
    while not served.script.requests:
        await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait_for(served.script.cancelled.wait(), 30)


async def test_requests_over_the_limit_are_told_to_come_again(served: Door) -> None:
    served.script.endless = True
    asking = [asyncio.create_task(served.client.post(CHAT, json=HELLO)) for _ in range(2)]
    while len(served.script.requests) < 2:
        await asyncio.sleep(0.01)
    answer = await served.client.post(CHAT, json=HELLO)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert "the limit is 2" in answer.json()["error"]["message"]
    for task in asking:
        task.cancel()


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_refused(served: Door, announced: bool) -> None:
    data = b"x" * (1 << 20) + b"x"

    async def pieces():
        yield data

    answer = await served.client.post(CHAT, content=data if announced else pieces())
    assert answer.status_code == 413
    assert "1048576 bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model":"\\ud800"}', b"\xff"])
async def test_what_is_not_a_request_is_refused(door: Door, body: bytes) -> None:
    answer = await door.client.post(CHAT, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_other_paths_and_methods_are_errors_as_openai_writes_them(door: Door) -> None:
    answer = await door.client.get("/v1/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    answer = await door.client.get(CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("host", ["[", "other.example"])
async def test_nobody_is_sent_to_the_address_that_they_call(door: Door, host: str) -> None:
    answer = await door.client.post(f"{CHAT}/", json=HELLO, headers={"host": host})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == f"there is nothing at {CHAT}/"


@pytest.mark.parametrize(
    ("path", "field"), [(CHAT, "messages"), ("/v1/embeddings", "input"), (CHAT, "unknown")]
)
@pytest.mark.parametrize("value", ["{}", "1", "[]", '{"a":"b"}'])
async def test_many_values_are_refused_before_they_take_memory(
    door: Door, path: str, field: str, value: str
) -> None:
    many = ",".join([value] * (MAX_VALUES + 1))
    answer = await door.client.post(path, content=f'{{"model":"m","{field}":[{many}]}}')
    assert answer.status_code == 413
    assert f"{MAX_VALUES} values" in answer.json()["error"]["message"]


async def test_signs_of_json_in_a_text_are_no_values(door: Door) -> None:
    text = '\\"[{,' * MAX_VALUES
    await door.post(CHAT, HELLO | {"messages": [{"role": "user", "content": text}]})
    assert door.script.requests[0].messages[0].content == text


async def test_the_first_fault_of_a_list_is_enough(door: Door) -> None:
    error = await door.refused(CHAT, HELLO | {"messages": [1] * (MAX_VALUES // 2)})
    assert error["param"] == "messages[0]"
    biases = {f"x{index}": 0 for index in range(MAX_VALUES // 2)}
    error = await door.refused(CHAT, HELLO | {"logit_bias": biases})
    assert error["message"] == f"the body has {len(biases)} fields that are not valid"
    error = await door.refused("/v1/rerank", {"model": "m", "query": "q", "documents": [{}]})
    assert error["param"] == "documents[0].text"


async def test_a_service_that_is_down_is_503(door: Door) -> None:
    door.script.error = UnavailableError("it is down")
    answer = await door.client.post(CHAT, json=HELLO)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def test_the_request_id_is_the_one_of_envoy(door: Door) -> None:
    answer = await door.client.post(CHAT, json=HELLO, headers={"x-request-id": "abc"})
    assert answer.headers["x-request-id"] == "abc"


@pytest.mark.parametrize(("share", "lines"), [(1.0, 40), (0.5, 22), (0.0, 0)])
async def test_a_share_of_the_requests_that_succeed_is_logged(
    door: Door, share: float, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "http_svc.requests")
    async with served_with(door, logged_calls=share) as served:
        for number in range(40):
            named = {"x-request-id": f"call-{number}"}
            await served.client.get("/v1/models", headers=named)
        await served.client.post(CHAT, json={})
    ended = [vars(line)["http_code"] for line in caplog.records if line.message == "request ended"]
    assert (ended.count(200), ended.count(400)) == (lines, 1)


async def test_the_openapi_document_is_served(door: Door) -> None:
    document = (await door.client.get("/v1/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    assert CHAT in document["paths"]
    fields = document["components"]["schemas"]["ChatBody"]["properties"]
    assert {"model", "messages", "stream"} <= set(fields)
    assert {scheme for each in document["security"] for scheme in each} == {"key", "x-api-key"}


async def test_health_is_bad_while_the_service_ends(served: Door) -> None:
    answer = await served.client.get("/health")
    assert answer.status_code == 200


async def test_a_client_that_does_not_read_holds_no_generation(door: Door) -> None:
    door.script.pieces, door.script.endless = ["x" * 100_000] * 200, True
    async with served_with(door, reader_seconds=0.2) as served:
        host, port = served.address.split(":")
        _, writer = await asyncio.open_connection(host, port, limit=1 << 10)
        body = json.dumps(HELLO | {"stream": True}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        while not door.script.requests:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(30):
            while door.script.running:
                await asyncio.sleep(0.01)
        writer.close()


async def test_one_caller_may_fill_half_of_the_memory_for_bodies() -> None:
    reader = BodyReader(max_bytes=100, memory=120)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"x" * 50}

    async with contextlib.AsyncExitStack() as open_bodies:
        set_caller({CALLER_KEY: "alice"})
        await open_bodies.enter_async_context(reader.body(Headers(), receive))
        with pytest.raises(QueueFullError, match="120 bytes"):
            await open_bodies.enter_async_context(reader.body(Headers(), receive))
        set_caller({CALLER_KEY: "bob"})
        await open_bodies.enter_async_context(reader.body(Headers(), receive))
        set_caller({CALLER_KEY: "carol"})
        with pytest.raises(QueueFullError, match="120 bytes"):
            await open_bodies.enter_async_context(reader.body(Headers(), receive))
    async with reader.body(Headers(), receive) as body:
        assert body == b"x" * 50
