"""/v1/embeddings."""

from __future__ import annotations

import base64
import struct

import pytest

from ml import transformers_pb2 as pb
from tests.unit.http.conftest import Door

PATH = "/v1/embeddings"


async def test_vectors_as_numbers_and_as_base64(door: Door) -> None:
    door.script.embeddings = [[0.5, -1.0], [2.0, 0.25]]
    body = {"model": "m", "input": ["one", "two"], "dimensions": 2}
    answer = await door.post(PATH, body)
    assert [each["embedding"] for each in answer["data"]] == [[0.5, -1.0], [2.0, 0.25]]
    assert [each["index"] for each in answer["data"]] == [0, 1]
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    written = await door.post(PATH, body | {"encoding_format": "base64"})
    assert [each["embedding"] for each in written["data"]] == [
        base64.b64encode(struct.pack("<2f", *values)).decode() for values in door.script.embeddings
    ]
    assert door.script.requests[0] == pb.GenerateEmbeddingsRequest(
        model="m", texts=["one", "two"], dimensions=2
    )


async def test_many_vectors_are_written_beside_the_event_loop(door: Door) -> None:
    door.script.embeddings = [[float(index)] * 300 for index in range(100)]
    answer = await door.post(PATH, {"model": "m", "input": ["x"] * 100})
    assert [each["embedding"] for each in answer["data"]] == door.script.embeddings


@pytest.mark.parametrize("given", [[], [1, 2], [[1, 2]], ["x", 1], 5, None])
async def test_an_input_that_is_no_text_is_refused(door: Door, given: object) -> None:
    error = await door.refused(PATH, {"model": "m", "input": given})
    assert error["param"].startswith("input")
    assert door.script.requests == []
