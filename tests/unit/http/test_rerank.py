"""/v1/rerank, as clients of Jina and of Cohere expect it."""

from __future__ import annotations

from ml import transformers_pb2 as pb
from tests.unit.http.conftest import Door


async def test_documents_in_their_order(door: Door) -> None:
    door.script.inferred = pb.InferResponse(
        documents=[pb.RankedDocument(index=1, score=0.75), pb.RankedDocument(index=0, score=0.25)]
    )
    body = {"model": "m", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 2}
    answer = await door.post("/v1/rerank", body)
    assert answer["results"] == [
        {"index": 1, "relevance_score": 0.75, "document": {"text": "b"}},
        {"index": 0, "relevance_score": 0.25, "document": {"text": "a"}},
    ]
    answer = await door.post("/v2/rerank", body | {"return_documents": False})
    assert answer["results"][0] == {"index": 1, "relevance_score": 0.75}
    ranking = pb.Ranking(query="q", documents=["a", "b"])
    assert door.script.requests[0] == pb.InferRequest(
        model="m", ranking=ranking, options={"top_k": "2"}
    )


async def test_no_documents_are_refused(door: Door) -> None:
    error = await door.refused("/v1/rerank", {"model": "m", "query": "q", "documents": []})
    assert error["param"] == "documents"
