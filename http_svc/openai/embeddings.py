"""/v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import sys
from array import array
from typing import Any, Literal

from pydantic import Field, StrictInt

from http_svc.answers import Answer, Whole, whole_json
from http_svc.bodies import Body, Items
from http_svc.sampling import INT32
from http_svc.services import Services
from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, MissingFieldError

# Numbers that are written as JSON on the event loop; more are written in a thread.
_INLINE_NUMBERS = 20_000


class EmbeddingBody(Body):
    """A request of /v1/embeddings."""

    model: str
    input: str | Items[str] | Items[StrictInt] | Items[Items[StrictInt]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=INT32)
    # Not OpenAI's: the name of one of the model's own prompts, such as "query".
    prompt_name: str | None = None


async def embed(body: EmbeddingBody, services: Services) -> Answer:
    """Turns texts into vectors.

    Raises:
        InvalidArgumentError: the input is empty, or is of token ids.
    """
    inputs = [body.input] if isinstance(body.input, str) else body.input
    if not inputs:
        raise MissingFieldError("input is empty", field="input")
    texts = [text for text in inputs if isinstance(text, str)]
    if len(texts) != len(inputs):
        raise InvalidArgumentError(
            "input: token ids are not supported; send the texts", field="input"
        )
    request = pb.GenerateEmbeddingsRequest(
        texts=texts,
        model=body.model,
        dimensions=body.dimensions or 0,
        prompt_name=body.prompt_name or "",
    )
    response = await services.embed(request)
    numbers = sum(len(each.values) for each in response.embeddings[:1]) * len(response.embeddings)
    if numbers <= _INLINE_NUMBERS:
        return _answer(body, response)
    return await asyncio.to_thread(_answer, body, response)


def _answer(body: EmbeddingBody, response: pb.GeneratedEmbeddingsResponse) -> Whole:
    written = _base64 if body.encoding_format == "base64" else list
    data: list[dict[str, Any]] = [
        {"object": "embedding", "index": index, "embedding": written(each.values)}
        for index, each in enumerate(response.embeddings)
    ]
    usage = {"prompt_tokens": response.tokens, "total_tokens": response.tokens}
    return whole_json({"object": "list", "data": data, "model": body.model, "usage": usage})


def _base64(values: Any) -> str:
    """Little-endian float32, as base64."""
    numbers = array("f", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers).decode()
