"""/v1/rerank, in the shapes of Jina and Cohere."""

from __future__ import annotations

import uuid
from typing import Any

from pydantic import Field

from http_svc.answers import Answer, whole_json
from http_svc.bodies import Body, Items
from http_svc.sampling import INT32
from http_svc.services import Services
from ml import transformers_pb2 as pb
from shared.errors import MissingFieldError


class Document(Body):
    """A document as an object."""

    text: str


class RerankBody(Body):
    """A request of /v1/rerank."""

    model: str
    query: str | Document
    documents: Items[str | Document]
    top_n: int | None = Field(None, ge=1, le=INT32)
    # Absent is true for Jina and false for Cohere. Jina's clients read the documents; Cohere's
    # ignore them.
    return_documents: bool | None = None


async def rerank(body: RerankBody, services: Services) -> Answer:
    """Orders documents by how well they answer a query.

    Raises:
        MissingFieldError: there are no documents.
    """
    if not body.documents:
        raise MissingFieldError("documents is empty", field="documents")
    texts = [_text(document) for document in body.documents]
    request = pb.InferRequest(
        model=body.model, ranking=pb.Ranking(query=_text(body.query), documents=texts)
    )
    if body.top_n:
        request.options["top_k"] = str(body.top_n)
    response = await services.infer(request)
    results: list[dict[str, Any]] = []
    for document in response.documents:
        result: dict[str, Any] = {"index": document.index, "relevance_score": document.score}
        if body.return_documents is not False:
            result["document"] = {"text": texts[document.index]}
        results.append(result)
    return whole_json(
        {
            "id": f"rerank-{uuid.uuid4().hex}",
            "model": body.model,
            "results": results,
            "meta": {"api_version": {"version": "2"}},
        }
    )


def _text(document: str | Document) -> str:
    return document if isinstance(document, str) else document.text
